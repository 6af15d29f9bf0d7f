"""How Triton spells types, scalar primitives and conversions. Tables only: no tiles, no addresses."""

from __future__ import annotations

#: element types as `tl` names; streams narrower than a byte are loaded as bytes
TYPES = {
    "f32": "tl.float32", "f16": "tl.float16", "bf16": "tl.bfloat16", "f64": "tl.float64", "i8": "tl.int8", "u8": "tl.uint8",
    "i16": "tl.int16", "u16": "tl.uint16", "i32": "tl.int32", "u32": "tl.uint32", "i64": "tl.int64", "bool": "tl.int1",
}  # fmt: skip

#: scalar primitives over operands {0}, {1}, {2}
PRIMITIVES = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "fma": "{0} * {1} + {2}",
    "min": "tl.minimum({0}, {1})", "max": "tl.maximum({0}, {1})", "neg": "-{0}", "abs": "tl.abs({0})",
    "exp": "tl.exp({0})", "log": "tl.log({0})", "sqrt": "tl.sqrt({0})", "rsqrt": "(1.0 / tl.sqrt({0}))",
    "erf": "tl.erf({0})", "sin": "tl.sin({0})", "cos": "tl.cos({0})", "round": "_round({0})", "floor": "tl.floor({0})",
    "lt": "{0} < {1}", "le": "{0} <= {1}", "eq": "{0} == {1}", "ne": "{0} != {1}", "and": "{0} & {1}", "or": "{0} | {1}",
    "xor": "{0} ^ {1}", "not": "~{0}", "shl": "{0} << {1}", "shr": "{0} >> {1}", "select": "tl.where({0}, {1}, {2})",
}  # fmt: skip

#: division and remainder truncate for integers, where Triton's own operators are defined for non-negative ones only
DIVISION = {
    ("div", True): "_quotient({0}, {1})", ("div", False): "{0} / {1}",
    ("rem", True): "({0} - _quotient({0}, {1}) * {1})", ("rem", False): "({0} - _truncate({0} / {1}) * {1})",
}  # fmt: skip

REDUCE = {"add": "tl.sum", "max": "tl.max", "min": "tl.min"}

#: what every generated module starts with
PRELUDE = """import triton
import triton.language as tl


@triton.jit
def _round(x):
    low = tl.floor(x)
    part = x - low
    odd = low - 2.0 * tl.floor(low * 0.5)
    return tl.where(part < 0.5, low, tl.where(part > 0.5, low + 1.0, low + odd))


@triton.jit
def _truncate(x):
    return tl.where(x < 0, -tl.floor(-x), tl.floor(x))


@triton.jit
def _quotient(a, b):
    safe = tl.where(b == 0, 1, tl.abs(b))
    size = tl.abs(a) // safe
    return tl.where(b == 0, 0, tl.where((a < 0) != (b < 0), -size, size))


@triton.jit
def _add(a, b):
    return a + b


@triton.jit
def _max(a, b):
    return tl.maximum(a, b)


@triton.jit
def _min(a, b):
    return tl.minimum(a, b)

"""
