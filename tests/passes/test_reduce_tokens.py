"""reduce-tokens on models of transformers: eager with the published method, graph, tile, compiled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from numpy.typing import NDArray

from tests.four_values import assert_agree, four_values
from tests.passes.token_models import TOKENS, Cut, Reduced, evit, images, neighbours, small_vit, tome
from tilewright.capture.modules import capture_module, exported
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Module
from tilewright.ir.interp.graph import Interpreter
from tilewright.ir.interp.kv_cache import InterpStates
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.driver import run_passes
from tilewright.passes.pipelines import LOWERING
from tilewright.passes.reducers import base, known_reducers, parse_reducer
from tilewright.passes.reducers.published import quarters
from tilewright.recipe import resolve_recipe

Array = NDArray[Any]


@dataclass(frozen=True)
class Captured:
    """A module with its weights, and inputs."""

    module: Module
    store: WeightStore
    inputs: Mapping[str, Array]

    def graph(self, text: str) -> Any:
        """The record of the graph passes with tokens reduced so ("": all of them)."""
        return run_passes(self.module, resolve_recipe("f32", tokens=text or None).pipeline("plain"))

    def reduced(self, text: str) -> Module:
        found: Module = self.graph(text).stage("reduce-tokens").ir
        return found

    def interpreted(self, module: Module) -> Mapping[str, Array]:
        return Interpreter(module, self.store).run("forward", self.inputs, InterpStates(()))

    def check(self, text: str, eager: Mapping[str, Array]) -> None:
        """Four values: eager, the graph with its ops of token reduction, tile programs, compiled code."""
        fused = self.graph(text).module
        program = run_passes(fused, ", ".join(LOWERING)).program
        values = four_values(fused, program, "forward", self.inputs, self.store, eager=eager)
        values["graph"] = dict(self.interpreted(self.reduced(text)))
        assert_agree(values, 2e-5)


def captured(model: Any, *inputs: torch.Tensor, **named: torch.Tensor) -> Captured:
    module, memory = capture_module(exported(model, named or inputs, None), None, None)
    held = [x.numpy() for x in (*inputs, *named.values())]
    names = [v.name for v in module.graph("forward").inputs]
    return Captured(module, WeightStore(memory=memory), dict(zip(names, held, strict=True)))


@pytest.fixture(scope="module")
def vit() -> Captured:
    return captured(small_vit(), images())


CUTS: dict[str, tuple[dict[int, Cut], bool]] = {
    "evit(keep=0.6, layers=[0])": ({0: evit(0.6, True)}, False),
    "evit(keep=0.6, layers=[0, 1])": ({0: evit(0.6, True), 1: evit(0.6, True)}, False),
    "pyramid(stages=2, keep=0.35)": ({0: evit(0.35, False)}, False),
    "tome(r=5)": ({0: tome(5), 1: tome(5)}, True),
    "neighbours(keep=0.3, layers=[0])": ({0: neighbours(8)}, True),
}


#: every day; gathering is compiled daily by the tests below
QUICK = ("tome(r=5)",)


@pytest.mark.parametrize(
    "text", [pytest.param(t, marks=() if t in QUICK else pytest.mark.slow) for t in CUTS]
)
def test_four_values(vit: Captured, text: str) -> None:
    cuts, sized = CUTS[text]
    eager = Reduced(small_vit(), cuts, sized)(images()).numpy()
    vit.check(text, {"logits": eager})


def test_clusters(vit: Captured) -> None:
    """k-medoids have no second implementation here: the graph's meaning, tile programs and compiled code."""
    text = "centerclip(keep=0.4, segments=3, layers=[0])"
    vit.check(text, vit.interpreted(vit.reduced(text)))


@pytest.mark.parametrize("name", known_reducers())
def test_all_tokens_kept_is_no_reduction(vit: Captured, name: str) -> None:
    """T-id: the graph is the same as without a reducer, and a note says that nothing is cut."""
    text = "pyramid(keep=1.0, stages=2)" if name == "pyramid" else f"{name}(keep=1.0)"
    record = vit.graph(text)
    assert record.stage("reduce-tokens").ir == vit.graph("").stage("merge-linears").ir
    notes = [n for n in record.notes if n.pass_name == "reduce-tokens"]
    assert all(not n.applied and n.reason == f"all {TOKENS} tokens are kept" for n in notes)
    assert notes or name == "tome"


def test_a_reducer_that_changes_results_changes_them(vit: Captured) -> None:
    plain = vit.interpreted(vit.module)["logits"]
    for text in CUTS:
        assert np.abs(vit.interpreted(vit.reduced(text))["logits"] - plain).max() > 1e-3, text


def test_notes_say_what_was_cut_where(vit: Captured) -> None:
    notes = [str(n) for n in vit.graph("tome(r=5)").notes if n.pass_name == "reduce-tokens"]
    assert [n.partition("): ")[2] for n in notes] == [
        "26 to 21 tokens after layer 0, merged by keys",
        "21 to 16 tokens after layer 1, merged by keys",
    ]


def test_the_reducer_of_the_page(vit: Captured, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/tokens.md works as it stands there."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    page = (repo / "docs" / "tokens.md").read_text("utf-8")
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", page, re.S) if "register_reducer" in c]
    exec(compile(code, "tokens.md", "exec", dont_inherit=True), {"__name__": "late"})
    notes = [str(n) for n in vit.graph("late(keep=0.4)").notes if n.pass_name == "reduce-tokens"]
    assert [n.partition("): ")[2] for n in notes] == [
        "26 to 11 tokens after layer 0, kept by attention of all tokens"
    ]


# ------------------------------------------------------------------ results with every token
SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 16,
}  # fmt: skip


class Hidden(torch.nn.Module):
    """The last hidden states of an encoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = hf.BertModel(hf.BertConfig(**SMALL), add_pooling_layer=False).eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state


@pytest.fixture(scope="module")
def bert() -> Captured:
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[1, 7:] = 0
    ids = torch.randint(3, 50, (2, 11), generator=torch.Generator().manual_seed(0))
    return captured(Hidden(), ids, mask)


def test_restored_results_have_every_token(bert: Captured) -> None:
    text = "evit(keep=0.6, layers=[0, 1], restore=true)"
    eager = bert.interpreted(bert.reduced(text))
    (hidden,) = [x for x in eager.values() if x.ndim == 3]
    assert hidden.shape == (2, 11, 32)
    bert.check(text, eager)


def test_padding_is_dropped_first(bert: Captured) -> None:
    """7 of 11 tokens of the second row are there; when 7 are kept, it is these, and they see no padding."""
    text = "pyramid(stages=2, keep=0.6, restore=true)"
    module = bert.reduced(text)
    (op,) = [op for op in module.graphs[0].ops if op.name == "assign_tokens"]
    graph = module.graphs[0]
    ids = f"%{op.results[0].name}"
    asked = module.replace_graph(type(graph)(graph.name, graph.inputs, graph.ops, (ids,), ("ids",)))
    np.testing.assert_array_equal(bert.interpreted(asked)["ids"][1], range(7))


# ------------------------------------------------------------------ messages
def test_results_with_every_token_need_restoring(bert: Captured) -> None:
    with pytest.raises(RefusedError, match="has an entry for every token\n  help: add restore=true"):
        bert.graph("evit(keep=0.6)")


def test_padding_is_not_compared(bert: Captured) -> None:
    with pytest.raises(RefusedError, match="tokens are compared with padding among them"):
        bert.graph("tome(r=2, restore=true)")


class Mlp(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu()


def test_a_module_without_attention() -> None:
    with pytest.raises(RefusedError) as e:
        captured(Mlp(), torch.randn(2, 3)).graph("tome(r=1)")
    assert str(e.value).startswith(
        "reduce-tokens: refused: no self-attention is recognised in graph @forward, so its tokens are unknown"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pyramid(stages=3)",
         "tokens: refused: pyramid: 3 stages of 2 attention layers\n  help: at most 2 stages"),
        ("evit(layers=[2])",
         ("tokens: refused: evit: layers [2] of a model with 2 attention layers\n"
         "  help: they are numbered 0 to 1")),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_the_model(vit: Captured, text: str, message: str) -> None:
    with pytest.raises(RefusedError) as e:
        vit.graph(text)
    assert str(e.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evit(keep=1.5)", "tokens: refused: evit: keep must be above 0 and at most 1, got 1.5"),
        ("evit(keep=0.0)", "tokens: refused: evit: keep must be above 0 and at most 1, got 0"),
        ("tome(r=-1)", "tokens: refused: tome: r must be 0 or more, got -1"),
        ("evid(keep=0.5)", "tokens: refused: unknown token reduction 'evid'\n  help: did you mean evit?"),
        ("pyramid(score=best)", "tokens: refused: pyramid: score must be one of first, last, all, got best"),
        ("tome(R=4)",
         "tokens: refused: tome: unknown option 'R'\n  help: its options: keep, layers, protect, r, restore"),
        ("tome(r=0.5)", "tokens: refused: tome: r must be int, got 0.5"),
        ("tome(r=)",
         ("tokens: refused: tome(r=): unexpected '}'\n"
         "  help: write options as in evit(keep=0.7, layers=[1, 3])")),
        ("", "tokens: refused: expected a name and options, as in evit(keep=0.7), got ''"),
    ],
)  # fmt: skip
def test_bad_texts(text: str, message: str) -> None:
    with pytest.raises(RefusedError) as e:
        parse_reducer(text)
    assert str(e.value) == message


@pytest.mark.parametrize(
    "text", ["evit", "evit(keep=0.5, layers=[1, 3])", "tome(r=8)", 'pyramid(score="all")']
)
def test_text_and_reducer_are_inverse(text: str) -> None:
    assert str(parse_reducer(text)) == text


def test_default_layers_are_those_of_the_paper() -> None:
    """EViT cuts at the 4th, 7th and 10th of 12 layers."""
    assert quarters(12) == (3, 6, 9)
    assert [c.layer for c in parse_reducer("pyramid").cuts(32, 500)] == [7, 15, 23]
