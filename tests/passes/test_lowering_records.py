"""Lowering records: one per op that has a kernel, and the answers that they and the legality function give."""

from __future__ import annotations

import pytest

from tilewright.ir.ops import OPS
from tilewright.ir.ops.base import OpTypeError
from tilewright.ir.types import tensor
from tilewright.passes.lower.legality import supports
from tilewright.passes.lower.record import LOWERINGS, Form, Lowering, lowering_of, register_lowering

#: ops that passes replace before lowering, or that no kernel computes yet
WITHOUT = {
    "attend", "conv", "cumprod", "flip", "fwht", "group_norm", "pad", "repeat", "roll", "sequence_length", "sort",
}  # fmt: skip


def test_every_op_has_a_record_or_is_listed() -> None:
    assert {name for name in OPS if lowering_of(name) is None} == WITHOUT
    assert set(LOWERINGS) <= set(OPS)


@pytest.mark.parametrize("record", LOWERINGS.values(), ids=list(LOWERINGS))
def test_a_record_says_how_its_op_is_computed(record: Lowering) -> None:
    assert any((record.emit, record.view, record.template, record.effect))
    assert record.matrix is None or record.template is not None
    assert (record.view is not None) == (record.form is Form.VIEW)


def test_two_records_of_one_op_are_refused() -> None:
    with pytest.raises(OpTypeError, match="op 'linear' has a lowering already"):
        register_lowering(Lowering("linear", Form.ALONE))


@pytest.mark.parametrize(
    ("name", "types", "attrs", "reason"),
    [
        ("linear", [tensor("f32", "T", 64), tensor("f32", 32, 64)], {}, ""),
        ("linear", [tensor("f32", "T", 64), tensor("f32", "N", 64)], {}, "a matrix of size N x 64, known at run time only"),
        ("linear", [tensor("f32", "T", 64), tensor("f32", 32, 65)], {}, "linear: expected x whose last axis is K = 65, got f32[T, 64]"),
        ("silu", [tensor("f32", "T", 64)], {}, ""),
        ("softmax", [tensor("f32", 4, 8)], {"axis": 0}, "softmax along axis 0 of rank 2"),
        ("topk", [tensor("f32", 4, 8192)], {"k": 2, "axis": 1}, "topk of 2 along axis 1 of (4, 8192): only short last axes"),
        ("sort", [tensor("f32", 4, 8)], {"axis": 1}, "no kernel computes sort"),
        ("nonsense", [], {}, "unknown op 'nonsense'"),
        ("cache_append", [], {}, "cache_append works on a state of a module"),
    ],
)  # fmt: skip
def test_supports_gives_its_reason(
    name: str, types: list[object], attrs: dict[str, object], reason: str
) -> None:
    assert supports(name, types, attrs) == reason  # type: ignore[arg-type]
