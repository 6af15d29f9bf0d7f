"""Lowering records: one per op with a kernel, and the answers of the legality function."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from tests.ir.graph_cases import graphs
from tests.passes.models import Llama, llama
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.ops import OPS
from tilewright.ir.ops.base import OpTypeError
from tilewright.ir.types import tensor
from tilewright.passes.base import PASSES, PassContext
from tilewright.passes.driver import run_passes
from tilewright.passes.lower import legality, lower
from tilewright.passes.lower.job import Built
from tilewright.passes.lower.legality import settle, supports
from tilewright.passes.lower.record import LOWERINGS, Form, Lowering, lowering_of, register_lowering
from tilewright.passes.lower.regions import Region, split_regions
from tilewright.passes.pipelines import DECODER

#: ops without a kernel of their own, and the pass that replaces each before lowering
REPLACED = {
    "assign_tokens": "expand-tokens", "attend": "decompose-attend", "fwht": "expand-fwht",
    "group_norm": "canonicalize", "merge_tokens": "expand-tokens", "repeat": "canonicalize",
    "restore_tokens": "expand-tokens", "sequence_length": "flatten-tokens",
}  # fmt: skip


def test_every_op_has_a_kernel_or_a_pass_that_replaces_it() -> None:
    assert {name for name in OPS if lowering_of(name) is None} == set(REPLACED)
    assert {name for name in REPLACED.values() if name} <= set(PASSES)
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
        ("linear", [tensor("f32", "T", 64), tensor("f32", "N", 64)], {},
         "a matrix of size N x 64, known at run time only"),
        ("linear", [tensor("f32", "T", 64), tensor("f32", 32, 65)], {},
         "linear: expected x whose last axis is K = 65, got f32[T, 64]"),
        ("silu", [tensor("f32", "T", 64)], {}, ""),
        ("softmax", [tensor("f32", 4, 8)], {"axis": 0}, "softmax along axis 0 of rank 2"),
        ("sort", [tensor("f32", 4, 8)], {"axis": 0}, "sort along axis 0 of rank 2"),
        ("pad", [tensor("f32", 4)], {"pads": (1, 0)}, ""),
        ("topk", [tensor("f32", 4, 8192)], {"k": 2, "axis": 1},
         "topk of 2 along axis 1 of (4, 8192): only short last axes"),
        ("fwht", [tensor("f32", 4, 8)], {"block": 8}, "no kernel computes fwht"),
        ("nonsense", [], {}, "unknown op 'nonsense'"),
        ("cache_append", [], {}, "cache_append works on a state of a module"),
    ],
)  # fmt: skip
def test_supports_gives_its_reason(
    name: str, types: list[object], attrs: dict[str, object], reason: str
) -> None:
    assert supports(name, types, attrs) == reason  # type: ignore[arg-type]


# ------------------------------------------------------------------ regions
def _fused(module: Module) -> Module:
    return run_passes(module, "canonicalize, fuse").module


@pytest.mark.parametrize(
    "variant", [Llama(), Llama(qk_norm=True, norm_offset=1.0), Llama(bias=True, tied=True)], ids=str
)
def test_lower_finds_the_regions_of_fuse_legal(variant: Llama) -> None:
    module = run_passes(llama(variant), ", ".join(DECODER)).module
    _assert_settled(module)


@settings(deadline=None, max_examples=40)
@given(graphs())
def test_lower_finds_the_regions_of_any_fused_graph_legal(module: Module) -> None:
    _assert_settled(_fused(module))


def _assert_settled(module: Module) -> None:
    changes: list[str] = []
    for graph in module.graphs:
        assert settle(module, graph, changes.append).graph == graph
    assert not changes


@pytest.mark.parametrize("between", ["", 'specialize{bind=[["R", 1]]}, '])
def test_kernels_that_fuse_built_are_built_again_only_for_another_graph(
    between: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = run_passes(llama(Llama()), ", ".join(DECODER[:-1])).module
    asked: list[Region] = []
    build = legality.build_region

    def counted(module: Module, graph: Graph, region: Region, free: dict[str, Op]) -> list[Built]:
        asked.append(region)
        return build(module, graph, region, free)

    monkeypatch.setattr(legality, "build_region", counted)
    pipeline = f"fuse, {between}lower"
    program = run_passes(module, pipeline).program
    built = len(asked)
    fused = run_passes(module, pipeline.removesuffix(", lower")).module
    (graph,) = fused.graphs
    assert built == len(split_regions(graph)) * (2 if between else 1)
    assert lower(fused) == program


def _strided() -> Module:
    """A transposition of three axes that a product reads: no tile is turned so."""
    b = GraphBuilder("forward")
    x, y = b.add_input("x", tensor("f32", 4, 6, 8)), b.add_input("y", tensor("f32", 2, 24))
    turned = b.op("transpose", x, perm=(2, 1, 0))
    b.output(b.op("matmul", y, b.op("reshape", turned, shape=(24, 8)), transpose_b=False), "z")
    return b.module()


def test_a_view_that_no_kernel_looks_through_is_copied_once_and_fuse_says_so() -> None:
    ctx = PassContext()
    fused = run_passes(_strided(), "fuse", ctx=ctx).module
    (graph,) = fused.graphs
    assert [(op.name, op.region is not None) for op in graph.ops] == [
        ("transpose", True), ("reshape", False), ("matmul", True),
    ]  # fmt: skip
    assert any("copied before it" in note.reason for note in ctx.notes)
    assert [k.name for k in lower(fused).kernels] == ["transpose", "matmul"]


def test_a_region_that_is_not_one_kernel_falls_apart_with_its_reason() -> None:
    b = GraphBuilder("forward")
    x = b.add_input("x", tensor("f32", 4, 8))
    y = b.op("softmax", b.op("cumsum", x, axis=1), axis=1)
    b.output(y, "y")
    module = b.module()
    (graph,) = module.graphs
    together = replace(graph, ops=tuple(replace(op, region=0) for op in graph.ops))
    changes: list[str] = []
    settled = settle(module, together, changes.append)
    assert changes == [
        "region 0 (cumsum, softmax): cumsum must be the only op of its region; one kernel per op"
    ]
    assert [op.region for op in settled.graph.ops] == [None, None]
    assert not settled.problems
