"""Static bounds of a tile's values: the largest unsigned code, the range of integers held in f32.

In: nodes. Out: bounds that the choice of instructions relies on: an upper bound may be too high, never too
low.
"""

from __future__ import annotations

from tilewright.backends.cpp.nodes import Node


def largest(node: Node) -> int:
    """An upper bound of an unsigned operand's values."""
    if node.op == "load":
        place = node.source
        spec = place.record or (
            place.encoding.record([None if not x.is_const else int(x.const) for x in place.dims])
            if place.encoding
            else None
        )
        stream = (
            next((s for s in spec.streams if s.name == (node.stream or "values")), None) if spec else None
        )
        hi = stream.hi if stream else place.hi
        if hi is not None:
            return hi
        return (
            (1 << int(stream.dtype[1:])) - 1
            if stream and stream.dtype in ("u1", "u2", "u3", "u4", "u5", "u6", "u7")
            else 255
        )
    if node.op in ("transpose", "expand", "reshape"):
        return largest(node.args[0])
    if node.op == "lookup" and node.args[0].op == "const":
        return _constant(node.args[0])
    if node.op == "and":
        return min(_unsigned(a) for a in node.args)
    if node.op == "or":  # planes combined to a code
        return (1 << max(largest(a).bit_length() for a in node.args)) - 1
    if node.op == "shr" and node.args[1].op == "const":
        return largest(node.args[0]) >> _constant(node.args[1])
    if node.op in ("shl", "add"):
        a, b = node.args
        grown = (
            largest(a) + largest(b)
            if node.op == "add"
            else largest(a) << (_constant(b) if b.op == "const" else 8)
        )
        return min(grown, 255)
    return 255


def _unsigned(node: Node) -> int:
    return _constant(node) if node.op == "const" else largest(node)


def _constant(node: Node) -> int:
    return int(str(node.attrs["value"]))


def whole_bounds(node: Node) -> tuple[float, float] | None:
    """Bounds of an f32 tile that is known to hold integers (bytes, their sums, and multiples by integer
    constants); None: not known."""
    if node.op == "cast" and node.args[0].dtype == "u8":
        return 0.0, float(largest(node.args[0]))
    if node.op == "const":
        value = float(str(node.attrs["value"]))
        return (value, value) if value.is_integer() else None
    if node.op not in ("add", "sub", "mul"):
        return None
    x, y = (whole_bounds(a) for a in node.args)
    if x is None or y is None:
        return None
    (a, b), (c, e) = x, y
    if node.op == "mul":
        ends = (a * c, a * e, b * c, b * e)
        return min(ends), max(ends)
    return (a + c, b + e) if node.op == "add" else (a - e, b - c)
