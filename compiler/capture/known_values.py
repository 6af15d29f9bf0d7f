"""What is known of a value from how it was made: counts are not negative, some masks are true throughout.

In: an operand of the graph under construction. Out: yes, or no for "not known". Masks of transformers shrink
by it to what they say.
"""

from __future__ import annotations

import math

from tilewright.capture.making import Making
from tilewright.ir.types import FLOATS, INTEGERS

_PLACES = ("argmax", "argmin", "topk", "sort", "abs")
_MOVES = (
    "reshape",
    "expand",
    "transpose",
    "slice",
    "split",
    "gather",
    "repeat",
    "flip",
    "roll",
    "cumsum",
    "sum",
)
_BOTH = ("add", "mul", "max", "min", "concat", "rem", "and")


def not_negative(c: Making, x: str, depth: int = 20) -> bool:
    """Whether an integer value is made only of counts and places."""
    op = c.producer(x)
    if op is None or depth == 0:
        return False
    if op.name in ("const", "full", "iota"):
        start, step = (op.attr("start"), op.attr("step")) if op.name == "iota" else (op.attr("value"), 0)
        return isinstance(start, int) and isinstance(step, int) and min(start, step) >= 0
    if op.name == "cast" and c.dtype(op.operands[0]) == "bool" or op.name in _PLACES:
        return True
    if op.name == "cast":
        return c.dtype(op.operands[0]) in INTEGERS and not_negative(c, op.operands[0], depth - 1)
    read = op.operands[:1] if op.name in _MOVES else op.operands if op.name in _BOTH else ()
    return bool(read) and all(not_negative(c, o, depth - 1) for o in read)


def always_true(c: Making, x: str) -> bool:
    """Whether a mask is a stretched constant true."""
    op = c.producer(x)
    while op is not None and op.name in ("reshape", "expand"):
        op = c.producer(op.operands[0])
    return op is not None and op.name in ("const", "full") and op.attr("value") is True


def finite(c: Making, x: str) -> bool:
    """Whether a float value is made only of finite constants, as masks are that choose between 0 and the
    lowest number."""
    op = c.producer(x)
    if op is None:
        return False
    if op.name in ("const", "full"):
        value = op.attr("value")
        return isinstance(value, int | float) and math.isfinite(value)
    if op.name == "cast":
        return c.dtype(op.operands[0]) not in FLOATS
    read = op.operands[1:] if op.name == "select" else op.operands[:1] if op.name in _MOVES[:5] else ()
    return bool(read) and all(finite(c, o) for o in read)
