"""Graphs without state: inputs by order or name, symbols from shapes, mismatches; and the plan's barriers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.stub import build, kernel
from tilewright.artifact.contents import Contents
from tilewright.artifact.writer import write_artifact
from tilewright.backends.base import Binary
from tilewright.backends.cpp.hazards import waits
from tilewright.backends.cpp.plan import Scope, _blocks, library_source, render_step
from tilewright.backends.step import PlanError
from tilewright.backends.storage import PlacedWeight
from tilewright.ir.graph.core import Inline, Value, Weight
from tilewright.ir.plan.core import Call, Plan, PlanBuffer, Program
from tilewright.ir.text.tile_parser import parse_kernel
from tilewright.ir.types import SymbolRange, symbol, tensor
from tilewright.passes.record import Record, Stage
from tilewright.runtime.errors import SessionError
from tilewright.runtime.model import Model, load

# scale: y[b, j] = x[b, j] * w[j]; join: z[b, j] = x[b, j] + y[b, j]
SOURCE = """
static void k_scale(void* const* P, const int64_t* D, int64_t tid, int64_t nt) {
  for (int64_t b = tid; b < D[0]; b += nt)
    for (int j = 0; j < 4; j++)
      ((float*)P[2])[b * 4 + j] = ((const float*)P[0])[b * 4 + j] * ((const float*)P[1])[j];
}
static void k_join(void* const* P, const int64_t* D, int64_t tid, int64_t nt) {
  for (int64_t b = D[0] - 1 - tid; b >= 0; b -= nt)
    for (int j = 0; j < 4; j++)
      ((float*)P[2])[b * 4 + j] = ((const float*)P[0])[b * 4 + j] + ((const float*)P[1])[b * 4 + j];
}
"""
B = symbol("B")
ROWS = 4096


def program(calls: tuple[Call, ...] | None = None, offsets: tuple[int, int] = (0, 1 << 20)) -> Program:
    bound = (("B", B),)
    default = (
        Call("scale", ("%x", "@w", "%h"), bound),
        Call("scale", ("%x", "@w", "%g"), bound),
        Call("join", ("%h", "%g", "%y"), bound),
        Call("join", ("%y", "%x", "%z"), bound),
    )
    kernels = (
        kernel("scale", [("a", "f32", ("B", 4)), ("w", "f32", (4,)), ("c", "f32", ("B", 4))], "B", "c"),
        kernel("join", [("a", "f32", ("B", 4)), ("b", "f32", ("B", 4)), ("c", "f32", ("B", 4))], "B", "c"),
    )
    t = tensor("f32", B, 4)
    size = 16 * ROWS
    buffers = (
        *(PlanBuffer(n, t, size, o) for n, o in zip("hg", offsets, strict=True)),
        PlanBuffer("y", t, size, 2 << 20),
        PlanBuffer("z", t, size, 3 << 20),
    )
    plan = Plan(
        "forward", (Value("x", t),), (("sum", "%y"), ("more", "%z")), buffers, calls or default, 4 << 20
    )
    weight = Weight("w", tensor("f32", 4), Inline("f32", (4,), b""))
    return Program(kernels, (plan,), (weight,), (), (("B", SymbolRange(1, ROWS)),))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return made(program(), tmp_path_factory.mktemp("plain"))


def made(p: Program, root: Path) -> Model:
    """The program as an artifact, loaded."""
    source = library_source(SOURCE, p, "baseline")

    def weights(place: PlacedWeight) -> Iterable[bytes]:
        return [np.asarray([1, 2, 3, 4], np.float32).tobytes()]

    level = Binary("baseline", (), build(source, root / "lib.so"), source)
    write_artifact(root / "m.tw", Contents(Record((Stage("plan", p),)), (level,)), weights)
    return load(root / "m.tw")


def test_what_no_call_writes_shows_under_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory starts as NaN wherever these tests run, and as the system gives it elsewhere."""
    bound = (("B", B),)
    calls = (Call("scale", ("%x", "@w", "%h"), bound), Call("join", ("%h", "%g", "%y"), bound))
    m = made(program(calls), tmp_path)
    x = np.ones((3, 4), np.float32)
    got = m(x)
    assert isinstance(got, dict) and np.isnan(got["sum"]).all() and np.isnan(got["more"]).all()
    monkeypatch.setenv("TW_POISON", "0")
    got = Model(m.artifact, m.library.file)(x)
    assert isinstance(got, dict) and np.array_equal(got["sum"], x * [1, 2, 3, 4])


@pytest.mark.parametrize("rows", [1, 3, ROWS])
def test_outputs_follow_the_inputs_shape(model: Model, rows: int) -> None:
    x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
    w = np.asarray([1, 2, 3, 4], np.float32)
    for _ in range(20):  # a missing barrier shows sooner or later
        got = model(x)
        assert isinstance(got, dict) and np.array_equal(got["sum"], x * w + x * w)
        assert np.array_equal(got["more"], x * w + x * w + x)
    named = model(x=x.tolist())
    assert isinstance(named, dict) and np.array_equal(named["sum"], x * w + x * w)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_more_threads_than_cores_meet_at_every_barrier(model: Model, threads: int) -> None:
    m = Model(model.artifact, model.library.file, threads=threads)
    x = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
    want = m(x)
    assert isinstance(want, dict)
    for _ in range(50):
        got = m(x)
        assert isinstance(got, dict) and all(np.array_equal(got[k], want[k]) for k in want)


def test_wrong_inputs_are_named(model: Model) -> None:
    good = np.ones((2, 4), np.float32)
    for args, inputs, message in [
        ((), {}, "expected the inputs x; got 0 in order and none by name"),
        ((good, good), {}, "got 2 in order"),
        ((good,), {"x": good}, "got 1 in order and x by name"),
        ((), {"y": good}, "by name"),
        ((np.ones((2, 5), np.float32),), {}, r"input x: expected shape \[2, 4\], got \[2, 5\]"),
        ((np.ones(4, np.float32),), {}, r"expected f32\[B, 4\], got float32 of shape \[4\]"),
        ((np.ones((2, 4), np.complex64),), {}, "got complex64"),
        (
            (np.ones((ROWS + 1, 4), np.float32),),
            {},
            f"B is {ROWS + 1}, the model was compiled for 1 to {ROWS}",
        ),
        ((np.ones((0, 4), np.float32),), {}, "B is 0"),
    ]:
        with pytest.raises(SessionError, match=message):
            model(*args, **inputs)
    with pytest.raises(SessionError, match="keeps no state between calls"):
        model.session()


@pytest.mark.parametrize("dtype", ["float64", "int64", "int8", "bool", "complex64"])
def test_nothing_is_cast_that_could_lose(model: Model, dtype: str) -> None:
    with pytest.raises(SessionError) as e:
        model(np.ones((2, 4), dtype))
    assert str(e.value) == (
        f"input x: expected f32[B, 4], got {dtype} of shape [2, 4]\n"
        "  help: values are never rounded implicitly: pass x.astype(np.float32), or x.to(torch.float32) of "
        "a tensor"
    )


def test_what_widens_is_taken(model: Model) -> None:
    want = model(np.ones((2, 4), np.float32))
    assert isinstance(want, dict)
    for x in (
        np.ones((2, 4), np.float16),
        np.ones((2, 4), ">f4"),
        [[1.0] * 4] * 2,
        [[1] * 4] * 2,
        [np.ones(4)] * 2,
    ):
        got = model(x)
        assert isinstance(got, dict) and all(np.array_equal(got[k], want[k]) for k in want)


def test_barriers_stand_only_before_what_depends() -> None:
    assert waits(program(), program().plans[0]) == [False, False, True, True]
    shared = program(offsets=(0, 0))  # g overwrites h: a hazard although the names differ
    assert waits(shared, shared.plans[0]) == [False, True, True, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Call("scale", ("%x", "@w"), (("B", B),)), "call @scale: expected 3 arguments, got 2: %x, @w"),
        (
            Call("scale", ("%x", "@v", "%h"), (("B", B),)),
            "argument @v is not an input, buffer, weight or state of plan @forward",
        ),
        (Call("scale", ("%x", "@w", "%h"), ()), r"expected values for \(B\) in this order, got \(\)"),
        (Call("scale", ("%x", "@w", "%x"), (("B", B),)), "call @scale writes %x, which is read-only"),
    ],
)
def test_plans_that_cannot_be_rendered(call: Call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_step(program((call,)), "baseline")


def test_an_unplaced_buffer() -> None:
    with pytest.raises(PlanError, match="buffer %h has no offset in the arena"):
        render_step(program(offsets=(-1, 0)), "baseline")


def test_the_blocks_that_threads_divide_are_counted() -> None:
    """At most, over the schedules that a level may pick: a call of one block is not for a team."""
    k = parse_kernel(BLOCKS)
    bound = {"M": symbol("B") * 2, "N": 96}
    plan = Plan("forward", (), (), (), (), 0)
    columns = "(((1LL * 96LL + 0LL) + {}) / {})".format
    wanted = {
        "baseline": columns(15, 16),
        "avx2": f"tw_max({columns(31, 32)}, {columns(47, 48)})",
        "avx512": f"(((1LL * (2LL * s[0]) + 0LL) + 1) / 2) * {columns(15, 16)}",
    }
    for level, text in wanted.items():
        scope = Scope(level, plan, {}, {}, {"B": 0}, {})
        at = _blocks(k, bound, scope)
        assert list(scope.values)[at] == text


BLOCKS = """
kernel @f(%x: f32[M, N], %y: f32[M, N]) {
  grid i in M by 2
  grid j in N by BN
  %v = load %x[i:2, j:BN]
  store %y[i:2, j:BN], %v
  schedule avx512 { BN=16; order i j; threads i j }
  schedule avx2 when M <= 4 { BN=32; order j i; threads j }
  schedule avx2 { BN=48; order j i }
  schedule * { BN=16; order j i; threads j }
}
"""
