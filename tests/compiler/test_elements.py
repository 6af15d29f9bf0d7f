"""Operators by element type, four ways: eager, graph interpreter, tile interpreter, compiled code.

Values are at the edges of each type, and types of results are PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import tilewright as tw
from tests.one_library import one_library
from tilewright.api import Compiled
from tilewright.backends.cpp.levels import native_level, runnable
from tilewright.ir.interp.graph import run_graph
from tilewright.ir.interp.plan import PlanRunner
from tilewright.ir.text.graph_parser import parse_module

Fns = Mapping[str, Callable[..., Tensor]]
#: share of itself by which a float may differ, by type
CLOSE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
FLOATS, INTS = tuple(CLOSE), (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
#: by type of results; int16 takes turns, beside int8 and uint8, which are computed in the same way
EACH_INT = [pytest.param(d, marks=pytest.mark.slow) if d == torch.int16 else d for d in INTS]
EACH = [*FLOATS, *EACH_INT, torch.bool]
NAMES = {d: str(d).removeprefix("torch.") for d in (*FLOATS, *INTS, torch.bool)}
SHAPES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.bool: "bool",
}


def edges(dtype: torch.dtype) -> Tensor:
    """Values where types differ: zeros, halves, limits, beyond other types' limits; NaN and infinities."""
    if dtype == torch.bool:
        return torch.tensor([True, False, True, True, False])
    if dtype in FLOATS:
        top = torch.finfo(dtype).max
        plain = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            0.5,
            -0.5,
            1.5,
            2.5,
            -2.5,
            3.7,
            -3.7,
            0.1,
            100.25,
            -7.0,
            300.0,
            40000.0,
            3e9,
            -3e9,
            1e19,
        ]
        return torch.tensor([*plain, 1e-3, top, -top, math.nan, math.inf, -math.inf], dtype=torch.float64).to(
            dtype
        )
    lo, hi = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    wanted = [0, 1, 2, 3, 5, 7, 100, 127, 200, 30000, 70000, 2**24 + 1, 2**31 + 5, 2**53 + 1, hi - 1, hi]
    found = [n for w in wanted for n in (w, -w) if lo <= n <= hi]
    return torch.tensor([*found, lo, lo + 1], dtype=dtype)


def lines(dtype: torch.dtype) -> Tensor:
    """The edges forwards and backwards: kernels fuse what lies in rows."""
    return torch.stack([edges(dtype), edges(dtype).flip(0)])


def pairs(a: torch.dtype, b: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every edge with every other."""
    x, y = edges(a), edges(b)
    return x[:, None].repeat(1, len(y)), y[None].repeat(len(x), 1)


class Many(torch.nn.Module):
    """Functions of the same inputs, results by name."""

    def __init__(self, fns: Fns) -> None:
        super().__init__()
        self.fns = fns

    def forward(self, *args: Tensor) -> dict[str, Tensor]:
        return {name.replace(" ", "_"): fn(*args) for name, fn in self.fns.items()}


def held(x: Tensor) -> NDArray[Any]:
    """As interpreters hold it: bf16 and f16 in float32."""
    return x.float().numpy() if x.dtype in (torch.float16, torch.bfloat16) else x.numpy()


def check(
    fns: Fns,
    *args: Tensor,
    level: str = "",
    tolerance: Mapping[torch.dtype, float] = CLOSE,
    largest: bool = False,
) -> Compiled:
    """Every function four ways; a failure names the function, the value and the first stage that is off.
    `largest`: floats may differ by a share of the largest of them, as sums do."""
    compiled = tw.compile(Many(fns), example_inputs=args, recipe="f32")
    captured = parse_module(compiled.stages[0].text)
    inputs = {v.name: held(a) for v, a in zip(captured.graph("forward").inputs, args, strict=True)}
    runner = one_library(compiled.program, level or native_level().name)
    stages = {
        "graph": run_graph(captured, "forward", inputs, compiled.store),
        "tile": PlanRunner(compiled.program, compiled.store).run("forward", inputs),
        "compiled": PlanRunner(compiled.program, compiled.store, runner).run("forward", inputs),
    }
    outputs = {n: next(b.type.dtype for b in compiled.program.plans[0].buffers if f"%{b.name}" == r)
               for n, r in compiled.program.plans[0].outputs}  # fmt: skip
    problems = []
    for name, result in eager(fns, args).items():
        want, kind = (
            held(result),
            SHAPES.get(result.dtype) or NAMES[result.dtype].replace("uint", "u").replace("int", "i"),
        )
        share = tolerance.get(result.dtype, 0.0)
        slack = (
            share * float(np.abs(want[np.isfinite(want)]).max(initial=0))
            if largest and want.dtype.kind == "f"
            else 0.0
        )
        if outputs[name] != kind:
            problems.append(f"{name}: is {outputs[name]}, expected {kind}")
        for stage, got in stages.items():
            off = differs(got[name], want, share, slack)
            if off.any():
                problems.append(f"{name}: {stage} {_first(got[name], want, off, args)}")
                break
    assert not problems, "\n".join(problems)
    return compiled


def eager(fns: Fns, args: tuple[Tensor, ...]) -> dict[str, Tensor]:
    with torch.no_grad():
        return Many(fns)(*args)  # type: ignore[no-any-return]


def differs(got: NDArray[Any], want: NDArray[Any], share: float, slack: float) -> NDArray[np.bool_]:
    """Where two arrays differ: floats by more than a share of themselves; NaN is like NaN, and integers are
    equal."""
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    if want.dtype.kind != "f":
        return np.asarray(got != want)
    with np.errstate(all="ignore"):
        return ~np.isclose(got, want, rtol=share, atol=slack, equal_nan=True)


def _first(got: NDArray[Any], want: NDArray[Any], off: NDArray[np.bool_], args: tuple[Tensor, ...]) -> str:
    at = tuple(int(n[0]) for n in np.nonzero(off)) if want.ndim else ()
    of = [a[at].tolist() for a in args] if all(a.shape == want.shape for a in args) else "all"
    return f"gives {got[at]}, expected {want[at]} at {list(at)} of {of} ({int(off.sum())} differ)"


# ------------------------------------------------------------------ one operand
ANY: Fns = {
    "neg": lambda x: -x, "abs": torch.abs, "sign": torch.sign, "floor": torch.floor, "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc, "square": torch.square, "isnan": torch.isnan, "isinf": torch.isinf,
    "isfinite": torch.isfinite,
    "not": torch.logical_not, "relu": torch.relu, "times": lambda x: x * 3, "scaled": lambda x: x * 2.5,
    "plus": lambda x: x + 1,
    "minus": lambda x: 1 - x, "third": lambda x: x / 3, "floored": lambda x: x // 3,
    "below": lambda x: x // -2,
    "rest": lambda x: x % 3, "rest of float": lambda x: x % 5.5, "fmod": lambda x: torch.fmod(x, -3),
    "cube": lambda x: x**3,
    "fifth": lambda x: x**5, "less": lambda x: x < 2.5, "same": lambda x: x == 1,
    "under": lambda x: x >= -300, "clamp": lambda x:
    x.clamp(1, 100), "clamp float": lambda x: x.clamp(max=2.5), "where": lambda x: torch.where(x > 1, x, 2),
    "mixed": lambda x:
    torch.where(x > 1, x, 0.5), "filled": lambda x: x.masked_fill(x > 2, 7),
    "joined": lambda x: torch.cat([x, x > 1]),
}  # fmt: skip
OF_FLOATS: Fns = {
    "nan_to_num": torch.nan_to_num, "inverse": lambda x: x**-1, "inverse square": lambda x: x**-2,
    "root": torch.sqrt,
    "reciprocal": torch.reciprocal, "exp": lambda x: torch.exp(-x.abs()), "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "log":
    torch.log, "floor by tenth": lambda x: x // 0.1, "by infinity": lambda x: x // math.inf,
    "rest of infinity": lambda x: x %
    -math.inf, "by zero": lambda x: x // 0.0, "rest of zero": lambda x: x % 0.0,
    "log1p": lambda x: torch.log1p(x.abs()),
}  # fmt: skip
OF_INTS: Fns = {
    "bits": torch.bitwise_not, "true division": lambda x: torch.exp(-(x / 7).abs()), "power": lambda x: x**11,
    "left": lambda x: x << 3, "right": lambda x: x >> 2, "far left": lambda x: x << 70,
    "and": lambda x: x & 6,
    "or": lambda x: x | 9, "xor": lambda x: x ^ 5,
}  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=NAMES.get)
def test_functions_of_floats(dtype: torch.dtype) -> None:
    check(ANY | OF_FLOATS, lines(dtype))


@pytest.mark.parametrize("dtype", EACH_INT, ids=NAMES.get)
def test_functions_of_integers(dtype: torch.dtype) -> None:
    check(ANY | OF_INTS, lines(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("level", [t.name for t in runnable() if t is not native_level()])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.uint8], ids=NAMES.get)
def test_functions_at_every_level(dtype: torch.dtype, level: str) -> None:
    """No fused multiply-add at `baseline`: nothing here depends on one."""
    casts: Fns = {f"to {n}": lambda x, d=d: x.to(d) for d, n in NAMES.items() if d != dtype}
    check(ANY | casts | (OF_FLOATS if dtype in FLOATS else OF_INTS), lines(dtype), level=level)


# ------------------------------------------------------------------ two operands
BOTH: Fns = {
    "add": torch.add, "sub": lambda a, b: a - b, "mul": torch.mul,
    "max": torch.maximum, "min": torch.minimum, "eq": torch.eq, "ne": torch.ne, "lt": torch.lt,
    "le": torch.le, "gt": torch.gt,
    "ge": torch.ge, "where": lambda a, b: torch.where(a < b, a, b), "logical and": torch.logical_and,
    "clamp": torch.clamp,
}  # fmt: skip
DIVISIONS: Fns = {
    "div": torch.div, "floor": torch.floor_divide, "floor div": lambda a,
    b: torch.div(a, b, rounding_mode="floor"),
    "trunc div": lambda a, b: torch.div(a, b, rounding_mode="trunc"), "remainder": torch.remainder,
    "fmod": torch.fmod,
}  # fmt: skip
BITS: Fns = {
    "and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor,
    "left": torch.bitwise_left_shift,
    "right": torch.bitwise_right_shift, "add twice": lambda a, b: torch.add(a, b, alpha=2),
}  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=NAMES.get)
def test_pairs_of_floats(dtype: torch.dtype) -> None:
    """`torch.floor_divide` and similar functions are exact here, where PyTorch's vectors may lose a quotient
    beyond the type's digits.
    """
    a, b = pairs(dtype, dtype)
    check(BOTH, a, b)
    with np.errstate(all="ignore"):
        near = ~((a / b).abs() > 1 / torch.finfo(dtype).eps)
    fns = {
        n: f for n, f in DIVISIONS.items() if dtype != torch.bfloat16 or n != "trunc div"
    }  # PyTorch rounds before it cuts off
    check(
        fns | {"pow": torch.pow},
        a[near],
        b[near],
        tolerance={**CLOSE, torch.float32: 1e-4, torch.float64: 1e-10},
    )


@pytest.mark.parametrize("dtype", EACH_INT, ids=NAMES.get)
def test_pairs_of_integers(dtype: torch.dtype) -> None:
    a, b = pairs(dtype, dtype)
    check(BOTH | BITS, a, b)
    known = (b != 0) & ~((a == torch.iinfo(dtype).min) & (b == -1))  # PyTorch itself stops there, with SIGFPE
    check(DIVISIONS, a[known], b[known])


@pytest.mark.parametrize("dtype", EACH_INT, ids=NAMES.get)
def test_division_of_integers_by_zero(dtype: torch.dtype) -> None:
    """PyTorch raises an error; a kernel cannot, and gives 0, and the dividend as what is left."""
    a = edges(dtype)
    compiled = tw.compile(
        Many({"floor": lambda a, b: a // b, "rest": torch.fmod}), example_inputs=(a, a), recipe="f32"
    )
    got = compiled(a, torch.zeros_like(a))
    assert isinstance(got, dict)
    assert (got["floor"] == 0).all() and (got["rest"] == a).all()
    got = compiled(a, torch.full_like(a, -1))  # the smallest integer over -1 is itself
    assert isinstance(got, dict)
    assert dtype == torch.uint8 or (got["floor"] == -a).all() and (got["rest"] == 0).all()


# ------------------------------------------------------------------ between types
@pytest.mark.parametrize("dtype", [*FLOATS, *INTS, torch.bool], ids=NAMES.get)
def test_casts(dtype: torch.dtype) -> None:
    """To every other type, and there and back."""
    others = [d for d in (*FLOATS, *INTS, torch.bool) if d != dtype]
    fns: dict[str, Callable[..., Tensor]] = {f"to {NAMES[d]}": lambda x, d=d: x.to(d) for d in others}
    fns |= {f"by {NAMES[d]}": lambda x, d=d: x.to(d).to(dtype) for d in others}
    fns |= {
        f"through {NAMES[d]}": lambda x, d=d: x.to(d).double() for d in others if d != torch.float64 != dtype
    }
    check(fns, lines(dtype), tolerance={})


MIXED = [
    (torch.int64, torch.float32), (torch.int32, torch.float64), (torch.uint8, torch.int8),
    (torch.int16, torch.bfloat16),
    (torch.bool, torch.int64), (torch.float16, torch.bfloat16), (torch.float16, torch.float32),
    (torch.bool, torch.uint8),
]  # fmt: skip


@pytest.mark.parametrize("types", MIXED, ids=lambda t: "-".join(NAMES[d] for d in t))
def test_two_types(types: tuple[torch.dtype, torch.dtype]) -> None:
    """Operators that promote, as PyTorch does."""
    a, b = pairs(*types)
    names = ("add", "mul", "max", "eq", "lt", "ge", "where", "logical and")
    check({n: BOTH[n] for n in names} | {"cat": lambda a, b: torch.cat([a, b]), "div": torch.div}, a, b)


# ------------------------------------------------------------------ along axes
def rows(dtype: torch.dtype, finite: bool) -> Tensor:
    """[3, 70] of edges in another order in each row."""
    x = edges(dtype)
    x = x[torch.isfinite(x) & (x.abs() < 100)] if finite and dtype in FLOATS else x
    place = torch.randint(0, len(x), (3, 70), generator=torch.Generator().manual_seed(0))
    return x[place]


ORDERED: Fns = {
    f"{name} {axis}": lambda x, f=f, axis=axis: f(x, axis)
    for axis in (0, 1)
    for name, f in {
        "amax": torch.amax, "amin": torch.amin, "max": lambda x, d: x.max(d).values, "least": lambda x,
        d: x.min(d).values,
        "argmax": torch.argmax, "argmin": torch.argmin, "any": torch.any, "all": torch.all,
        "top": lambda x, d: x.topk(2, d).values, "lowest": lambda x, d: x.topk(2, d, largest=False).values,
    }.items()
}  # fmt: skip
SUMS: Fns = {
    f"{name} {axis}": lambda x, f=f, axis=axis: f(x, axis)
    for axis in (0, 1)
    for name, f in {"sum": torch.sum, "cumsum": torch.cumsum, "mean": lambda x,
    d: x.mean(d) if x.is_floating_point() else
                    x.to(torch.int8).float().mean(d), "kept": lambda x, d: x.sum(d, keepdim=True)}.items()
} | {"all": lambda x: x.sum(), "most": lambda x: x.max(), "product": lambda x: x[:, :9].prod(1)}  # fmt: skip


@pytest.mark.parametrize("dtype", EACH, ids=NAMES.get)
def test_order_along_axes(dtype: torch.dtype) -> None:
    skipped = ("argmax", "argmin", "top", "lowest") if dtype == torch.bool else ()
    check(
        {n: f for n, f in ORDERED.items() if not n.startswith(skipped)} if skipped else ORDERED,
        rows(dtype, False),
    )


@pytest.mark.parametrize("dtype", EACH, ids=NAMES.get)
def test_sums_along_axes(dtype: torch.dtype) -> None:
    check(SUMS, rows(dtype, True), largest=True)
