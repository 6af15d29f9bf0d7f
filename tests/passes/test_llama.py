"""The hand-written llama and its variants through the decoder pipeline, checked after every pass."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from tests.passes.models import Llama, llama
from tilewright.ir.graph.core import Graph, Module
from tilewright.ir.graph.random_values import RandomWeights, random_inputs
from tilewright.ir.interp.graph import Interpreter
from tilewright.ir.interp.kv_cache import InterpStates
from tilewright.ir.interp.plan import PlanRunner
from tilewright.passes.driver import Options, run_passes
from tilewright.passes.lower import lower
from tilewright.passes.lower.regions import split_regions
from tilewright.recipe import PRESETS, resolve_recipe

VARIANTS = {
    "plain": Llama(), "half-tables": Llama(half_tables=True), "part": Llama(rotary=4),
    "part-half-tables": Llama(rotary=4, half_tables=True), "offset": Llama(norm_offset=1.0),
    "qk-norm": Llama(qk_norm=True),
    "bias": Llama(bias=True), "tied": Llama(tied=True), "window": Llama(window=5),
    "all-heads": Llama(kv_heads=4),
}  # fmt: skip


def compiled(c: Llama, recipe: str = "f32") -> Module:
    pipeline = resolve_recipe(recipe).pipeline("decoder")
    return run_passes(llama(c), pipeline, Options(verify_each=True, check_each=True)).module


@pytest.mark.parametrize("name", VARIANTS)
def test_every_pass_keeps_the_meaning(name: str) -> None:
    module = compiled(VARIANTS[name])
    kinds = [op.name for op in module.graph("step").ops]
    layers = VARIANTS[name].layers
    assert kinds.count("rope") == 2 * layers
    assert kinds.count("attend_cache") == kinds.count("cache_append") == layers
    assert kinds.count("rms_norm") == layers * (4 if VARIANTS[name].qk_norm else 2) + 1
    assert kinds.count("linear") == 4 * layers + 1
    assert not {"pow", "mean", "rsqrt", "neg", "concat", "transpose", "matmul"} & set(kinds)


@pytest.mark.parametrize("recipe", PRESETS)
def test_presets(recipe: str) -> None:
    module = compiled(Llama(hidden=64, inner=96), recipe)
    order = region_graph(module.graph("step"))
    assert nx.is_directed_acyclic_graph(order)


def region_graph(graph: Graph) -> nx.DiGraph:
    order = nx.DiGraph()
    maker = {r.name: op.region for op in graph.ops for r in op.results}
    for op in graph.ops:
        sources = {maker[o[1:]] for o in op.operands if o[0] == "%" and maker.get(o[1:]) is not None}
        order.add_edges_from((s, op.region) for s in sources if op.region is not None and s != op.region)
    return order


def test_kernels_of_a_layer() -> None:
    """Seven regions a layer: norm, qkv, rotary with append, attention, o with residual, norm, gate-up, down
    with residual."""
    graph = compiled(Llama()).graph("step")
    regions = [[op.name for op in r.ops] for r in split_regions(graph)]
    assert regions[2:9] == [
        ["linear"], ["rope", "rope", "cache_append"], ["attend_cache"], ["linear", "add"], ["rms_norm"],
        ["linear", "silu", "mul"], ["linear", "add"],
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["plain", "all-heads", "qk-norm", "part"])
def test_lowered_program_agrees(name: str) -> None:
    """Graph interpreter and plan interpreter, on one step of two sequences."""
    module = compiled(VARIANTS[name])
    weights = RandomWeights(0).learn(module)
    inputs = random_inputs(module, "step", 1)
    want = Interpreter(module, weights).run("step", inputs, InterpStates(module.states))
    got = PlanRunner(lower(module), weights).run("step", inputs)
    size = np.abs(want["logits"]).max()
    assert np.abs(want["logits"] - got["logits"]).max() <= 2e-5 * size
