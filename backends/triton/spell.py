"""How Triton spells types, scalar primitives and conversions. Tables only: no tiles, no addresses."""

from __future__ import annotations

from tilewright.ir.numbers import int_range

#: element types as `tl` names; streams narrower than a byte are loaded as bytes
TYPES = {
    "f32": "tl.float32", "f16": "tl.float16", "bf16": "tl.bfloat16", "f64": "tl.float64", "i8": "tl.int8",
    "u8": "tl.uint8",
    "i16": "tl.int16", "u16": "tl.uint16", "i32": "tl.int32", "u32": "tl.uint32", "i64": "tl.int64",
    "bool": "tl.int1",
}  # fmt: skip

#: dtypes computed in f32 and rounded afterwards
NARROW = ("bf16", "f16")

#: scalar primitives over operands {0}, {1}, {2}
PRIMITIVES = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "min": "_min({0}, {1})",
    "max": "_max({0}, {1})", "neg": "-{0}",
    "abs": "tl.abs({0})", "exp": "tl.exp({0})", "log": "tl.log({0})", "sqrt": "tl.sqrt({0})",
    "rsqrt": "(1.0 / tl.sqrt({0}))",
    "erf": "tl.erf({0})", "sin": "tl.sin({0})", "cos": "tl.cos({0})", "floor": "tl.floor({0})",
    "lt": "{0} < {1}", "le": "{0} <= {1}", "eq": "{0} == {1}", "ne": "{0} != {1}", "and": "{0} & {1}",
    "or": "{0} | {1}",
    "xor": "{0} ^ {1}", "not": "~{0}", "select": "tl.where({0}, {1}, {2})",
}  # fmt: skip
#: primitives of floats only, and of integers only: division truncates, and gives 0 for a divisor of 0; shifts
#: by the width or more leave only the sign
FLOATING = {"div": "{0} / {1}", "rem": "{0} % {1}", "fma": "tl.fma({0}, {1}, {2})"}
SIGNED = {"div": "_quotient({0}, {1})", "rem": "({0} - _quotient({0}, {1}) * {1})", "fma": "{0} * {1} + {2}"}
UNSIGNED = {
    "neg": "(0 * {0} - {0})",
    "abs": "{0}",
    "div": "_unsigned({0}, {1})",
    "rem": "({0} - _unsigned({0}, {1}) * {1})",
}

#: the function by which a reduction or a scan combines two values; sums have an operation of their own
JOIN = {"add": "_add", "max": "_max", "min": "_min"}

#: what every generated module starts with
PRELUDE = """import triton
import triton.language as tl


@triton.jit
def _round(x, magic: tl.constexpr):
    size = tl.abs(x)
    near = (size + magic) - magic
    near = tl.where(x < 0, -near, near)
    return tl.where(size < magic, tl.where(near == 0, x * 0.0, near), x)


@triton.jit
def _integer(
    x,
    low: tl.constexpr,
    high: tl.constexpr,
    least: tl.constexpr,
    most: tl.constexpr,
    dtype: tl.constexpr,
):
    inside = tl.where((x > low) & (x < high), x, 0.0).to(dtype)
    return tl.where(x >= high, most, tl.where(x <= low, least, inside)).to(dtype)


@triton.jit
def _quotient(a, b):
    safe = tl.where((b == 0) | (b == -1), 1, b)
    return tl.where(b == 0, 0, tl.where(b == -1, 0 - a, a // safe))


@triton.jit
def _unsigned(a, b):
    return tl.where(b == 0, 0, a // tl.where(b == 0, 1, b))


@triton.jit
def _add(a, b):
    return a + b


@triton.jit
def _max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _min(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)

"""


def primitive(op: str, dtype: str, args: list[str]) -> str:
    """A scalar primitive on operands of one dtype; except for a condition (bool). Narrow floats have been
    widened before."""
    if op in ("shl", "shr"):
        return _shift(op, dtype, *args)
    if op == "round":
        return f"_round({args[0]}, {2.0**52 if dtype == 'f64' else 2.0**23})"
    whole = {**SIGNED, **UNSIGNED} if dtype[0] == "u" else SIGNED
    forms = {**PRIMITIVES, **(whole if dtype[0] in "iu" else FLOATING)}
    return forms[op].format(*args)


def _shift(op: str, dtype: str, a: str, b: str) -> str:
    bits = 8 if dtype in ("u8", "i8") else int(dtype[1:])
    inside = f"(({b} >= 0) & ({b} < {bits}))" if dtype[0] == "i" else f"({b} < {bits})"
    beyond = f"tl.where({a} < 0, -1, 0)" if op == "shr" and dtype[0] == "i" else "0"
    return f"tl.where({inside}, {a} {'<<' if op == 'shl' else '>>'} tl.where({inside}, {b}, 0), {beyond})"


def conversion(x: str, source: str, to: str) -> str:
    """A cast. Floats to integers: to nearest even, saturating, NaN gives 0. Integers to integers: saturating.
    To narrow floats: rounded from f32."""
    if source == to:
        return x
    wide = f"{x}.to(tl.float32)" if source in NARROW else x
    if to == "bool":
        return f"({wide} != 0)"
    if to in NARROW:
        return f"{x if source == 'f32' else f'{x}.to(tl.float32)'}.to({TYPES[to]})"
    if to in ("f32", "f64") or source == "bool":
        return f"{wide}.to({TYPES[to]})" if to != "f32" or source not in NARROW else wide
    least, most = int_range(to)
    if source[0] not in "iu":
        near = primitive("round", source, [wide])
        return f"_integer({near}, {float(least)}, {float(most + 1)}, {least}, {most}, {TYPES[to]})"
    return _clamped(x, int_range(source), (least, most), to)


def _clamped(x: str, have: tuple[int, int], want: tuple[int, int], to: str) -> str:
    """Clamps only at the ends that the source's range exceeds, in a type that holds both ranges."""
    ends = (*have, *want)
    through = "tl.int32" if min(ends) >= -(2**31) and max(ends) < 2**31 else "tl.int64"
    text = x if have[0] >= want[0] and have[1] <= want[1] else f"{x}.to({through})"
    text = f"tl.maximum({text}, {want[0]})" if have[0] < want[0] else text
    text = f"tl.minimum({text}, {want[1]})" if have[1] > want[1] else text
    return f"{text}.to({TYPES[to]})"
