"""Rule 14: conflicting instances are refused with whole messages; accepted programs have no conflicts."""

from __future__ import annotations

import itertools
import random
from operator import mul

import pytest

from tilewright.ir.errors import VerifyError
from tilewright.ir.text.tile_parser import parse_kernel
from tilewright.ir.text.tile_printer import print_statement
from tilewright.ir.tile.core import Kernel, Store, walk
from tilewright.ir.tile.verify import verify_kernel

SCALED = '%y: f32[N, 64] as record "0/8 1/32" {codes: u8 "0.8 1.32", scale: f32 "0.8"}'
LONE = "one store by itself"
PAIR_HINT = (
    "separate them by the axis, write to a different buffer, "
    "or declare the store disjoint if no other instance accesses what it writes"
)
#: (declarations, body): the store that is at fault comes first in each body that is refused
APART = [
    ("%x: f32[64], %y: f32[128]", ("grid d in 64 by 16 store %y[d:16], load %x[d:16] store %y[d + 64:16], "
                                  "load %x[d:16]")),
    ("%x: f32[D], %y: f32[2*D]", "grid d in D by 1 store %y[d], load %x[d] store %y[d + D], load %x[d]"),
    ("%x: f32[D], %y: f32[T, 2*D]",
     ("grid t in T by 1 for d in 0..D by 8 { %v = load %x[d:8] store %y[t, d:8], %v store %y[t, d + D:8], "
     "%v }")),
    ("%y: f32[D]", "grid d in D by 16 store %y[d:16], load %y[d:16]"),
    ("%y: f32[D, 8]", "grid rows d in D by B store %y[d:B, 0:8], load %y[d:B, 0:8]"),
    ("%y: f32[N, 8]", ("grid n in N by 1 grid h in 2 by 1 for m in 0..4 by 1 { store %y[n, 4*h + m], load "
                      "%y[n, 4*h + m] }")),
    ("%y: f32[T, 8]", ("grid t in T by 1 for k in 0..8 by 1 { for m in k..8 by 1 { store %y[t, m], load "
                      "%y[t, k] } }")),
    ("%i: i32[N], %y: f32[N]", "grid n in N by 1 %at = load %i[n] store %y[%at], load %y[%at] disjoint"),
    (SCALED,
     ("grid k in 64 by 32 grid n in N by 1 store %y.scale[n, k], const 1.0 : f32 store %y.codes[n, k:32], "
     "const 1 : u8[32]")),
]  # fmt: skip
MEETING = [
    (LONE, "a, b", "%y: f32[99, 99]",
     "grid a in 2 by 1 grid b in 2 by 1 store %y[4*a + 6*b:4, 6*a + 4*b:4], const 1 : f32[4, 4]"),
    (LONE, "k", SCALED, "grid k in 64 by 16 grid n in N by 1 store %y.scale[n, k], const 1.0 : f32"),
    ("write in `store %y[N + d:16], %1`", "d", "%x: f32[D], %y: f32[N + D]",
     "grid d in D by 16 store %y[d:16], load %x[d:16] store %y[d + N:16], load %x[d:16]"),
    ("write in `store %y[D + d:16], %1`", "d", "%x: f32[D], %y: f32[2*D]",
     "grid d in D by 16 store %y[d:16], load %x[d:16] store %y[d + D:16], load %x[d:16]"),
    ("write in `store %y[d + 48:16], %1`", "d", "%x: f32[64], %y: f32[128]",
     "grid d in 64 by 16 store %y[d:16], load %x[d:16] store %y[d + 48:16], load %x[d:16]"),
    ("read in `%0 = load %y[d + 1:16] : f32[16]`", "d", "%y: f32[D]",
     "grid d in D by 16 store %y[d:16], load %y[d + 1:16]"),
    ("read in `%0 = load %y[0:B] : f32[B]`", "d", "%y: f32[D]",
     "grid rows d in D by B store %y[d:B], load %y[0:B]"),
    ("read in `%0 = load %y[d:8] : f32[8]`", "d", "%y: f32[D]",
     "grid rows d in D by B store %y[d:B], reduce add (load %y[d:8])"),
    ("read in `%0 = load %y[%at] : f32`", "n", "%i: i32[N], %y: f32[N]",
     "grid n in N by 1 %at = load %i[n] store %y[n], load %y[%at]"),
    ("read in `%0 = load %y[n, m] : f32`", "h", "%y: f32[N, 8]",
     "grid n in N by 1 grid h in 2 by 1 for m in 0..5 by 1 { store %y[n, 4*h], load %y[n, m] }"),
]  # fmt: skip


def _kernel(params: str, body: str) -> Kernel:
    return parse_kernel(f"kernel @f({params}) {{ {body} schedule * {{ {'B=4 ' if ':B' in body else ''}}} }}")


@pytest.mark.parametrize(("params", "body"), APART)
def test_accesses_that_are_proved_apart(params: str, body: str) -> None:
    verify_kernel(_kernel(params, body))


@pytest.mark.parametrize(("what", "axes", "params", "body"), MEETING)
def test_instances_that_meet_are_refused(what: str, axes: str, params: str, body: str) -> None:
    with pytest.raises(VerifyError) as e:
        verify_kernel(_kernel(params, body))
    first = next(s for s in walk(_kernel(params, body).body) if isinstance(s, Store))
    pair = what is not LONE
    said = (
        f"elements of %{first.buffer} that other instances {what}"
        if pair
        else f"the same elements of %{first.buffer}"
    )
    hint = (
        PAIR_HINT
        if pair
        else "index the store with the axis, with an extent of at most its step, "
        "or declare the store disjoint"
    )
    text = print_statement(first)
    assert str(e.value) == (
        f"kernel @f: verify error: [14] instances along grid axis {axes} may write {said}\n"
        f"    {text}\n    {'^' * len(text)}\n  help: {hint}"
    )


def test_what_is_accepted_never_meets() -> None:
    """Seeded programs of two accesses to one buffer, each compared with every pair of instances."""
    rng = random.Random(14)
    verdicts = [_agrees(rng) for _ in range(400)]
    assert 60 < sum(verdicts) < 300


def _agrees(rng: random.Random) -> bool:
    """Whether the verifier accepts a random program; if it does, no two of its instances meet."""
    extents, steps = [rng.randint(1, 6) for _ in "ab"], [rng.choice([1, 1, 2]) for _ in "ab"]
    loop = rng.choice([1, 1, 3])
    forms = [
        [rng.choice([0, 0, 1, 1, 2, 4, 6]) for _ in "abk"] + [rng.choice([0, 0, 1, 8, 30])] for _ in range(4)
    ]
    widths = [rng.choice([1, 1, 2, 4]) for _ in range(4)]
    if rng.random() < 0.3:
        forms[2:], widths[2:] = forms[:2], widths[:2]
    at = [f"{a}*a + {b}*b + {k}*k + {c}:{w}" for (a, b, k, c), w in zip(forms, widths, strict=True)]
    load = rng.random() < 0.5
    second = (
        f"%u = load %y[{at[2]}, {at[3]}]"
        if load
        else f"store %y[{at[2]}, {at[3]}], const 1 : f32[{widths[2]}, {widths[3]}]"
    )
    text = f"""kernel @f(%y: f32[99, 99]) {{
      grid a in {extents[0]} by {steps[0]} grid b in {extents[1]} by {steps[1]}
      for k in 0..{loop} by 1 {{
        store %y[{at[0]}, {at[1]}], const 1 : f32[{widths[0]}, {widths[1]}] {second} }} }}"""
    try:
        verify_kernel(parse_kernel(text))
    except VerifyError as e:
        assert e.invariant == 14
        return False
    cells: dict[tuple[int, int], set[tuple[tuple[int, int], bool]]] = {}
    for a, b, k, n in itertools.product(
        range(0, extents[0], steps[0]), range(0, extents[1], steps[1]), range(loop), (0, 2)
    ):
        rows, cols = (
            range(s, s + widths[m]) for m in (n, n + 1) for s in [sum(map(mul, forms[m], (a, b, k, 1)))]
        )
        for cell in itertools.product(rows, cols):
            cells.setdefault(cell, set()).add(((a, b), n == 0 or not load))
    for users in cells.values():
        assert len({who for who, _ in users}) == 1 or not any(writes for _, writes in users), text
    return True
