"""Rule 20: loads of elements that the instance may not have stored are refused, with whole messages."""

from __future__ import annotations

import random

import numpy as np
import pytest

import tilewright.ir.encodings  # noqa: F401  registers the built-in encodings
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import VerifyError
from tilewright.ir.interp.tile import run_kernel
from tilewright.ir.text.tile_parser import parse_kernel
from tilewright.ir.text.tile_printer import print_kernel, print_statement
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.core import Kernel, Load, Store, walk
from tilewright.ir.tile.memory import Array, Stored
from tilewright.ir.tile.verify import verify_kernel
from tilewright.passes.lower.attention import Attention, Buffers, build_attention

PACKED = '%l : f32[10, 4] as record "0/16" {values: f32 "0.16"}'
TWO = '%l : f32[8, 32] as record "0/8 1/32" {codes: u8 "0.8 1.32", scale: f32 "0.8"}'
#: (local, statements of an instance i of N, with a loaded number %n, symbols N and T)
STORED = [
    ("%l : f32[8]", "store %l[0:8], %z8 %v = load %l[0:8]"),
    ("%l : f32[8]", "store %l[0:8], %z8 for k in 0..%n by 1 { %v = load %l[k + 2] }"),  # beyond the end: else
    ("%l : f32[8]", "store %l[0:8], %z8 %p = iota 4 %v = load %l[%p]"),
    ("%l : f32[8]", "%p = iota 8 store %l[%p], %z8 for k in 0..4 by 1 { %v = load %l[%p] }"),
    ("%l : f32[8]", "store %l[%n], %z %v = load %l[%n]"),
    ("%l : f32[64]", "for u in 0..%n by 8 { store %l[u:8], %z8 } for e in 0..%n by 8 { %v = load %l[e:8] }"),
    ("%l : f32[64]", "for u in 0..%n by 8 { store %l[u:8], %z8 } for u in 0..%n by 2 { %v = load %l[u:2] }"),
    ("%l : f32[64]", "for u in 0..T by 8 { store %l[u:8], %z8 } for e in 16..T by 4 { %v = load %l[e:4] }"),
    ("%l : f32[64]",
     "for u in 0..T by 8 { store %l[u:8], %z8 } for e in 0..T - 8 by 8 { %v = load %l[e + 8] }"),
    ("%l : f32[64]",
     "for u in 0..T by 8 { store %l[3*u:8], %z8 } for e in 0..T by 8 { %v = load %l[3*e + 7] }"),
    ("%l : f32[64]", "for u in 0..8 by 1 { store %l[56 - 8*u:8], %z8 } %v = load %l[0:64]"),
    ("%l : f32[64]",
     "for a in 0..2 by 1 { for b in 0..32 by 8 { store %l[32*a + b:8], %z8 } } %v = load %l[0:64]"),
    ("%l : f32[64]",
     "for a in 0..8 by 1 { for b in 8*a..8*a + 8 by 8 { store %l[b:8], %z8 } } %v = load %l[%n]"),
    ("%l : f32[4, 8]",
     "for a in 0..N by 1 { store %l[0:4, 0:8], %z8 } for b in 0..4 by 1 { %v = load %l[b, 0:8] }"),
    ("%l : f32[8, 8]", "for a in 0..8 by 1 { store %l[a, a], %z } for a in 1..8 by 1 { %v = load %l[a, a] }"),
    ("%l : f32[8]", "for r in 0..T by 1 { store %l[r:4], %z4 for k in 0..4 by 1 { %v = load %l[r + k] } }"),
    ("%l : f32[8]",
     ("for a in 0..T by 1 { for r in a..8 by 1 { store %l[r], %z } for r in a + 1..8 by 1 { %v = load %l[r] "
     "} }")),
    ("%l : f32[B]", "store %l[0:B], load %x[i:B] %v = load %l[0:B]"),
    ("%l : f32[64]",
     "for u in 0..T by B { store %l[u:B], load %x[u:B] } for e in 0..T by B { %v = load %l[e:B] }"),
    ("%l : f32[64]", "for u in 0..64 by B { store %l[u:B], load %x[u:B] } %v = load %l[0:64]"),
    (PACKED, "for u in 0..10 by 1 { store %l[u, 0:4], %z4 } for u in 0..10 by 1 { %v = load %l[u, 0:4] }"),
]  # fmt: skip
#: (local, statements, what is said)
MISSING = [
    ("%l : f32[16]", "store %l[0:8], %z8 %v = load %l[0:16]", "index 0:16 of dimension 0"),
    ("%l : f32[16]", "store %l[0:8], %z8 %p = iota 4 %v = load %l[%p]", "index %p of dimension 0"),
    ("%l : f32[16]", "%p = iota 8 store %l[%p], %z8 %v = load %l[0]", "index 0 of dimension 0"),
    ("%l : f32[8]", "store %l[%n], %z %m = load %d[i] %v = load %l[%m]", "index %m of dimension 0"),
    ("%l : f32[64]",
     "for u in 0..%n by 8 { store %l[u:8], %z8 } for e in 0..%n + 1 by 8 { %v = load %l[e:8] }",
     "index e:8 of dimension 0"),
    ("%l : f32[64]",
     "for u in 0..%n by 8 { store %l[u:8], %z8 } %m = load %d[i] for e in 0..%m by 8 { %v = load %l[e:8] }",
     "index e:8 of dimension 0"),
    ("%l : f32[64]",
     "for u in 0..%n by 8 { store %l[u:8], %z8 } for e in 0..%n by 16 { %v = load %l[e:16] }",
     "index e:16 of dimension 0"),
    ("%l : f32[64]",
     "for u in 0..%n by 8 { store %l[u:8], %z8 } for e in 3..%n by 8 { %v = load %l[e:8] }",
     "index e:8 of dimension 0"),
    ("%l : f32[64]",
     "for u in 8..T by 8 { store %l[u:8], %z8 } for e in 0..T by 8 { %v = load %l[e:8] }",
     "index e:8 of dimension 0"),
    ("%l : f32[64]",
     "for e in 0..T by 8 { store %l[e - 1:8], %z8 } for e in 0..T by 8 { %v = load %l[e:8] }",
     "index e:8 of dimension 0"),
    ("%l : f32[64]",
     "for u in 0..32 by 8 { store %l[2*u:8], %z8 } %v = load %l[0:56]",
     "index 0:56 of dimension 0"),
    ("%l : f32[64]",
     "for u in 0..T by 8 { store %l[u:8], %z8 } %v = load %l[0:8]",
     "index 0:8 of dimension 0"),
    ("%l : f32[8]",
     "for u in 0..T by 1 { store %l[0:8], %z8 } %v = load %l[0:8]",
     "loop u around it may have no iteration"),
    ("%l : f32[8]",
     "for u in 4..4 by 1 { store %l[0:8], %z8 } %v = load %l[0:8]",
     "loop u around it may have no iteration"),
    ("%l : f32[8, 8]",
     "for a in 0..8 by 1 { for b in 0..a + 1 by 1 { store %l[a, b], %z } } %v = load %l[7, 0:8]",
     "index 0:8 of dimension 1"),
    ("%l : f32[8, 8]", "for a in 0..8 by 1 { store %l[a, a], %z } for a in 0..8 by 1 { %v = load %l[a, 0] }",
     "one loop moves it along several dimensions"),
    ("%l : f32[16]", "store %l[0:B], load %x[i:B] %v = load %l[0:4]", "index 0:4 of dimension 0"),
    (PACKED,
     "store %l[0:10, 0:4], const 1 : f32[10, 4] %v = load %l[0:16, 0:4]",
     "index 0:16 of dimension 0"),
    (TWO,
     "store %l.codes[0:8, 0:32], const 1 : u8[8, 32] %v = load %l.scale[0:8, 0]",
     "%l.scale is another stream"),
]  # fmt: skip
HINT = (
    "load at the index of the store, in a loop with the same bounds and step, "
    "or let the store fill the whole local before"
)


def _kernel(local: str, body: str, axis: str = "grid i in N by 1") -> Kernel:
    axis, schedule = ("grid i in N by B", "schedule * { B=8 }") if "B" in local + body else (axis, "")
    return parse_kernel(f"""kernel @f(%d: i32[N], %x: f32[T]) {{ {axis} local {local}
      %n = load %d[i] %z = const 1 : f32 %z4 = const 1 : f32[4] %z8 = const 1 : f32[8]
      {body} {schedule} }}""")


@pytest.mark.parametrize(("local", "body"), STORED)
def test_loads_of_what_is_stored(local: str, body: str) -> None:
    verify_kernel(_kernel(local, body))


@pytest.mark.parametrize(("local", "body", "what"), MISSING)
def test_loads_of_what_may_not_be_stored_are_refused(local: str, body: str, what: str) -> None:
    kernel = _kernel(local, body)
    with pytest.raises(VerifyError) as e:
        verify_kernel(kernel)
    load = next(s for s in walk(kernel.body) if isinstance(s, Load) and s.name == "v")
    store = next(s for s in walk(kernel.body) if isinstance(s, Store))
    text = print_statement(load)
    assert str(e.value) == (
        f"kernel @f: verify error: [20] local %l may be read where `{print_statement(store)}` has not "
        f"written: {what}\n"
        f"    {text}\n    {'^' * len(text)}\n  help: {HINT}"
    )


# ------------------------------------------------------------------ the project's own kernel
def _attention(heads: int, single: bool, window: int = 0) -> Kernel:
    b = KernelBuilder("attend")
    k, v = (
        b.param(n, "f32", ("slots", 1, 512, 8), parse_encoding(f"f32(layout={layout})"))
        for n, layout in (("k", "keys"), ("v", "values"))
    )
    q, o, blocks, home = (
        b.param("q", "f32", ("T", heads, 8)),
        b.param("o", "f32", ("T", heads, 8)),
        b.param("blocks", "i32", ("NB", 4)),
        b.param("home", "i32", ("slots", 2)),
    )
    what = Attention(heads=heads, kv_heads=1, dim=8, v_dim=8, scale=0.3, window=window)
    build_attention(b, what, Buffers(q=q, blocks=blocks, k=k, v=v, home=home, o=o), single)
    return b.build()


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("window", [0, 32])
def test_attention_and_its_shifted_store(single: bool, window: int) -> None:
    """Scores and probabilities are stored and loaded in loops up to a computed number of keys."""
    kernel = _attention(2, single, window)
    verify_kernel(kernel)
    text = print_kernel(kernel)
    for local, var in (("scores", "u"), ("probs", "e")):
        rows = "0:2" if single else "0:8"
        at = f"store %{local}[{rows}, {var}:16]"
        assert at in text
        with pytest.raises(VerifyError, match=rf"\[20\] local %{local} may be read where"):
            verify_kernel(parse_kernel(text.replace(at, at.replace(var + ":", var + " - 15:"))))


# ------------------------------------------------------------------ against brute force
def test_what_is_accepted_reads_only_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded programs, each run for several values of its symbols and data on locals full of NaN."""
    unwritten: list[bool] = []
    read = Stored.read

    def watched(self: Stored, coords: list[Array], other: float) -> Array:
        held = read(self, coords, other)
        unwritten.append(bool(held.dtype == np.float32 and np.isnan(held).any()))
        return held

    monkeypatch.setattr(Stored, "read", watched)
    rng = random.Random(20)
    kinds: dict[tuple[bool, bool], int] = {}
    for _ in range(250):
        text = _program(rng)
        accepted, clean = _accepted(text), True
        for _ in range(4):
            unwritten.clear()
            _run(text, rng)
            clean = clean and not any(unwritten)
        assert clean or not accepted, text
        kinds[accepted, clean] = kinds.get((accepted, clean), 0) + 1
    assert kinds[True, True] > 80 and kinds[False, False] > 40 and kinds[False, True] < 80, kinds


def _accepted(text: str) -> bool:
    try:
        verify_kernel(parse_kernel(text))
    except VerifyError as e:
        assert e.invariant == 20, text
        return False
    return True


def _run(text: str, rng: random.Random) -> None:
    symbols = {"N": rng.randint(1, 3), "T": rng.choice([0, 1, 3, 4, 7, 8, 11, 12])}
    data: dict[str, Array] = {
        "d": np.array([[rng.randint(0, 9), rng.randint(0, 9)] for _ in range(symbols["N"])], np.int32)
    }
    run_kernel(parse_kernel(text), {**data, "x": np.ones((symbols["N"], 12), np.float32)}, symbols)


def _program(rng: random.Random) -> str:
    """A local filled by a nest of loops and read by another, often with the same bounds, perhaps in a loop
    around both."""
    dims = [rng.choice(["1", "4", "8", "12", "B"]) for _ in range(rng.choice([1, 1, 2]))]
    around = [("c", rng.choice(["0..T by 1", "0..8 by 4", "%n..6 by 1"]))] if rng.random() < 0.3 else []
    filling = [(v, _bounds(rng, [*around])) for v in "uw"[: rng.choice([0, 1, 1, 2])]]
    same = rng.random() < 0.7
    taking = [(v + "e", b) for v, b in filling] if same else [("e", _bounds(rng, around))]
    if same and rng.random() < 0.4 and taking:
        n = rng.randrange(len(taking))
        taking[n] = (taking[n][0], _bounds(rng, around))
    stored = [_entry(rng, [v for v, _ in [*around, *filling]]) for _ in dims]
    loaded = (
        [_renamed(s, [v for v, _ in filling]) for s in stored]
        if same
        else [_entry(rng, [v for v, _ in [*around, *taking]]) for _ in dims]
    )
    if rng.random() < 0.4:
        n = rng.randrange(len(dims))
        loaded[n] = (loaded[n][0] + rng.choice([" + 1", " - 1", " + 4", ""]), rng.choice([1, 2, 4, 8]))
    widths = [str(w) for _, w in stored]
    body = _nest(filling, f"store %l[{_shown(stored)}], const 1 : f32[{', '.join(widths)}]")
    body += " " + _nest(taking, f"%v = load %l[{_shown(loaded)}]")
    rows = "rows " if rng.random() < 0.3 else ""
    return f"""kernel @f(%d: i32[N, 2], %x: f32[N, 12]) {{
      grid {rows}i in N by B local %l : f32[{", ".join(dims)}]
      %n = load %d[i, 0] %m = load %d[i, 1] {_nest(around, body)} schedule * {{ B=3 }} }}"""


def _bounds(rng: random.Random, around: list[tuple[str, str]]) -> str:
    lows = ["0", "0", "0", "0", "1", "4", "%m", *[v for v, _ in around]]
    return (
        f"{rng.choice(lows)}..{rng.choice(['8', '12', '4', 'T', '%n', 'T + 1', '0', 'N'])} by "
        f"{rng.choice([1, 2, 4, 4])}"
    )


def _entry(rng: random.Random, loops: list[str]) -> tuple[str, int]:
    """Where a run starts, and its length."""
    parts = [f"{rng.choice([1, 1, 1, 2, 4, -1])}*{v}" for v in loops if rng.random() < 0.6]
    start = " + ".join([*parts, rng.choice(["0", "0", "0", "1", "%m"])]).replace("+ -", "- ")
    return start.removeprefix("- "), rng.choice([1, 2, 4, 4, 8])


def _renamed(entry: tuple[str, int], loops: list[str]) -> tuple[str, int]:
    start, width = entry
    for v in loops:
        start = start.replace(f"*{v}", f"*{v}e")
    return start, width


def _shown(entries: list[tuple[str, int]]) -> str:
    return ", ".join(f"{start}:{width}" for start, width in entries)


def _nest(loops: list[tuple[str, str]], body: str) -> str:
    for v, bounds in reversed(loops):
        body = f"for {v} in {bounds} {{ {body} }}"
    return body
