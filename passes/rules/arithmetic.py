"""Rules of arithmetic: neutral elements, casts and stored forms that change nothing, powers as products.

In: an op over operands of the new graph. Out: what may stand in its place. Adding 0 is left alone: it turns
-0 into 0.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.ir.graph.core import Op
from tilewright.ir.ops.common import same_shape
from tilewright.passes.rules.record import Canonical, OpRules, Rule, register_rules

#: element types that hold every value of another, which a cast there and back leaves alone
_WIDER: dict[str, tuple[str, ...]] = {
    "bf16": ("f32", "f64"), "f16": ("f32", "f64"), "f32": ("f64",), "i8": ("i16", "i32", "i64", "f32", "f64"),
    "u8": ("i16", "i32", "i64", "f32", "f64"), "i16": ("i32", "i64", "f32", "f64"), "i32": ("i64", "f64"),
}  # fmt: skip


def _cast_to_the_same_type(r: Canonical, op: Op) -> str | None:
    return op.operands[0] if r.type(op.operands[0]).dtype == op.attr("dtype") else None


def _cast_there_and_back(r: Canonical, op: Op) -> str | None:
    inner = r.producer(op.operands[0], "cast")
    first = r.type(inner.operands[0]) if inner is not None else None
    same = first is not None and first.encoding is None and first.dtype == op.attr("dtype")
    wide = same and first is not None and r.type(op.operands[0]).dtype in _WIDER.get(first.dtype, ())
    return inner.operands[0] if wide and inner is not None else None


def _decode_of_dense(r: Canonical, op: Op) -> str | None:
    return op.operands[0] if r.type(op.operands[0]).encoding is None else None


def _neutral(value: float, sides: tuple[int, ...]) -> Rule:
    def neutral_element(r: Canonical, op: Op) -> str | None:
        for side in sides:
            kept = op.operands[1 - side]
            t = r.type(kept)
            same = t.encoding is None and same_shape(t.shape, op.result.type.shape)
            if same and r.scalar(op.operands[side]) == value:
                return kept
        return None

    return neutral_element


def _power_as_product(r: Canonical, op: Op) -> Op | str | None:
    """x^1 is x, x^2 is x x, x^0.5 a root: closer to the truth and cheaper than exp and log."""
    n = r.scalar(op.operands[1])
    if n is None or not same_shape(r.type(op.operands[0]).shape, op.result.type.shape):
        return None
    base = op.operands[0]
    if n == 1.0:
        return base if r.type(base).encoding is None else None
    form = {2.0: ("mul", (base, base)), 0.5: ("sqrt", (base,)), -0.5: ("rsqrt", (base,))}.get(n)
    return replace(r.changed(op, form[1]), name=form[0]) if form else None


def _double_negation(r: Canonical, op: Op) -> str | None:
    inner = r.producer(op.operands[0], op.name)
    return inner.operands[0] if inner else None


def _open_clamp(r: Canonical, op: Op) -> str | None:
    return op.operands[0] if op.attr("lo") is None and op.attr("hi") is None else None


for _rules in (
    OpRules("cast", (_cast_to_the_same_type, _cast_there_and_back)),
    OpRules("decode", (_decode_of_dense,)),
    OpRules("mul", (_neutral(1.0, (0, 1)),)),
    OpRules("div", (_neutral(1.0, (1,)),)),
    OpRules("sub", (_neutral(0.0, (1,)),)),
    OpRules("pow", (_power_as_product,)),
    OpRules("neg", (_double_negation,)),
    OpRules("not", (_double_negation,)),
    OpRules("clamp", (_open_clamp,)),
):
    register_rules(_rules)
