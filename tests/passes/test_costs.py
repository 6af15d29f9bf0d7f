"""Operations and bytes of weights of a graph, against counts made by hand, and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from tests.passes.models import Llama, llama
from tilewright.cli.app import cli
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Module
from tilewright.ir.layout import PANEL
from tilewright.ir.ops import OPS
from tilewright.ir.types import as_dim, evaluate_dim, tensor
from tilewright.passes.costs import Cost, costs_of
from tilewright.passes.driver import run_passes
from tilewright.passes.pipelines import DECODER


def costs(module: Module, **sizes: int) -> dict[str, Cost]:
    (graph,) = module.graphs
    return {c.op: c for c in costs_of(module, graph, sizes)}


def test_linears_and_lookups_of_a_decoder() -> None:
    c = Llama(layers=2)
    module = run_passes(llama(c), ", ".join(DECODER)).module
    rows = c.hidden * c.dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.inner * c.hidden
    for tokens in (1, 7):
        found = costs(module, T=tokens, R=1, NB=1, context=100)
        # of the last layer only one row goes on behind the attention
        behind = c.heads * c.dim * c.hidden + 3 * c.inner * c.hidden
        most = tokens * c.layers * rows - (tokens - 1) * behind
        assert found["linear"].operations == 2 * (most + c.vocab * c.hidden)
        padded = -(-c.vocab // PANEL) * PANEL
        assert found["linear"].weight_bytes == 2 * (c.layers * rows + padded * c.hidden)  # bf16
        assert tokens * c.hidden * 2 <= found["gather"].weight_bytes <= tokens * (c.hidden + c.rotary) * 4
        assert found["attend_cache"].operations == c.layers * 2 * tokens * c.heads * 100 * 2 * c.dim
        assert found["cache_append"].operations == c.layers * 2 * tokens * c.kv_heads * c.dim


def test_attention_reads_its_window_at_most() -> None:
    """Values narrower than keys; the window counts once the context is longer."""
    types = [tensor("f32", "T", 4, 16), tensor("i32", "T"), tensor("i32", "T"), tensor("i32", "NB", 4)]
    cost = OPS["attend_cache"].cost
    assert cost is not None
    for context, read in ((5, 5), (8, 8), (500, 8)):
        found = cost(types, {"window": 8, "v_dim": 12, "sinks": False, "bias": "none"})
        assert evaluate_dim(as_dim(found), {"T": 3, "context": context}) == 2 * 3 * 4 * read * (16 + 12)


def test_every_op_states_its_cost() -> None:
    assert [name for name, op in OPS.items() if op.cost is None] == []


def test_experts_read_the_matrices_they_chose() -> None:
    b = GraphBuilder("forward")
    x, ids = b.add_input("x", tensor("f32", "T", 16)), b.add_input("ids", tensor("i32", "T", 2))
    b.symbol("T", 1, 64)
    w = b.inline("w", np.zeros((8, 32, 16), np.float32))
    b.output(b.op("grouped_linear", x, w, ids), "y")
    module = b.module()
    one, many = (costs(module, T=t)["grouped_linear"] for t in (1, 64))
    assert one == Cost("grouped_linear", 1, 2 * 2 * 32 * 16, 2 * 32 * 16 * 4)
    assert many.weight_bytes == 8 * 32 * 16 * 4


def test_inspect_shows_the_work_of_a_step(tiny_llama: Path) -> None:
    said = CliRunner().invoke(cli, ["inspect", str(tiny_llama), "--work", "1"])
    assert said.exit_code == 0, said.output
    assert "work of @step, every dynamic size 1, 2048 positions attended to" in said.output
    assert "linear" in said.output and "not stated" not in said.output
    few = CliRunner().invoke(cli, ["inspect", str(tiny_llama), "--work", "1", "--context", "64"])
    assert "64 positions attended to" in few.output and few.output != said.output
    report = json.loads(CliRunner().invoke(cli, ["inspect", str(tiny_llama), "--work", "1", "--json"]).stdout)
    (linear,) = [c for c in report["work"]["step"] if c["op"] == "linear"]
    assert linear["operations"] > 0 and linear["weight_bytes"] > 0
    (attend,) = [c for c in report["work"]["step"] if c["op"] == "attend_cache"]
    assert attend["operations"] > 0 and attend["operations"] % 2048 == 0
