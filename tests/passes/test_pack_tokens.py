"""pack-tokens on models of transformers and small modules: kept tokens as in eager PyTorch, padding zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

import tilewright as tw
from tests.four_values import assert_agree, four_values
from tilewright.capture.modules import capture_module, exported
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Module
from tilewright.ir.interp.graph import Interpreter
from tilewright.ir.types import tensor
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.driver import run_passes
from tilewright.passes.pipelines import LOWERING
from tilewright.pipeline import run_pipeline
from tilewright.recipe import resolve_recipe

Array = NDArray[Any]
BATCH, TOKENS, VOCABULARY = 4, 20, 50
#: sizes of all models here
SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 40}
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "bert": lambda: hf.BertConfig(**SMALL, **SIZES),
    "roberta": lambda: hf.RobertaConfig(**SMALL, **SIZES),
    "electra": lambda: hf.ElectraConfig(**SMALL, **SIZES, embedding_size=16),
    "albert": lambda: hf.AlbertConfig(**SMALL, **SIZES, embedding_size=16),
    "esm": lambda: hf.EsmConfig(**SMALL, **SIZES, pad_token_id=1, mask_token_id=3),
    "modernbert": lambda: hf.ModernBertConfig(
        **SMALL,
        **SIZES,
        local_attention=8,
        global_attn_every_n_layers=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "distilbert": lambda: hf.DistilBertConfig(**SMALL, dim=32, n_layers=2, n_heads=2, hidden_dim=48),
}


class Encoder(nn.Module):
    """Last hidden state, that of each first token, and the mean over kept tokens."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = hf.AutoModel.from_config(CONFIGS[name]())

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        last = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        kept = mask[:, :, None].to(last.dtype)
        return last, last[:, 0], (last * kept).sum(1) / kept.sum(1).clamp(min=1)


def lengths(*count: int) -> torch.Tensor:
    """A right-padded mask."""
    return (torch.arange(TOKENS) < torch.tensor(count)[:, None]).long()


MASKS = {
    "right-padded": lengths(7, 20, 3, 12),
    "all kept": lengths(20, 20, 20, 20),
    "an empty sequence, and one token": lengths(0, 1, 20, 1),
    "nothing kept": lengths(0, 0, 0, 0),
    "left-padded": lengths(5, 9, 20, 1).flip(1),
    "holes": (torch.rand(BATCH, TOKENS, generator=torch.Generator().manual_seed(3)) < 0.5).long(),
}


def ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (BATCH, TOKENS), generator=torch.Generator().manual_seed(seed))


def wanted(model: nn.Module, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What eager PyTorch says of kept tokens, and zeros for the others."""
    with torch.no_grad():
        last, first, mean = model(tokens, mask)
    keep = mask.bool()
    none = torch.zeros(())
    return (
        torch.where(keep[..., None], last, none), torch.where(keep[:, :1], first, none),
        torch.where(keep.any(1, keepdim=True), mean, none),
    )  # fmt: skip


def same(got: Any, want: Any) -> None:
    torch.testing.assert_close(tuple(got), tuple(want), rtol=2e-5, atol=2e-5)


@dataclass(frozen=True)
class Packed:
    """A model that is compiled with packing, and the graph that its program was lowered from."""

    model: nn.Module
    module: Module
    store: WeightStore
    compiled: tw.Compiled

    def four(self, inputs: Mapping[str, Array], eager: Mapping[str, Array]) -> None:
        program = run_passes(self.module, ", ".join(LOWERING)).program
        assert_agree(four_values(self.module, program, "forward", inputs, self.store, eager=eager), 2e-5)


@pytest.fixture(scope="module")
def bert() -> Packed:
    model = Encoder("bert").eval()
    example = (ids(), MASKS["right-padded"])
    module, memory = capture_module(exported(model, example, None), None, None)
    fused = run_passes(module, resolve_recipe("f32", pack=True).pipeline("plain")).module
    return Packed(
        model,
        fused,
        WeightStore(memory=memory),
        tw.compile(model, example_inputs=example, recipe="f32", pack=True),
    )


def packs(notes: Any) -> list[str]:
    return [n for n in map(str, notes) if n.startswith("pack-tokens")]


@pytest.mark.slow
def test_four_values(bert: Packed) -> None:
    """Eager, graph, tile programs, compiled code: with several sequences in one tile of rows."""
    mask = MASKS["an empty sequence, and one token"]
    names = [v.name for v in bert.module.graph("forward").inputs]
    results = wanted(bert.model, ids(), mask)
    inputs = dict(zip(names, (ids().numpy(), mask.numpy()), strict=True))
    bert.four(inputs, {f"output_{n}": x.numpy() for n, x in enumerate(results)})


@pytest.mark.parametrize("mask", MASKS)
def test_kept_tokens_are_those_of_eager(bert: Packed, mask: str) -> None:
    same(bert.compiled(ids(), MASKS[mask]), wanted(bert.model, ids(), MASKS[mask]))


def test_the_note_says_what_was_packed(bert: Packed) -> None:
    words = "2 attentions and what works token by token, over the tokens of %mask"
    assert packs(bert.compiled.notes) == [f"pack-tokens: pack applied at graph @forward: {words}"]
    shapes = [op.result.type.shape for op in bert.module.graph("forward").ops if op.name == "linear"]
    assert len(shapes) == 8 and all(str(s[0]) == "kept" for s in shapes)


def test_neighbours_change_no_bit(bert: Packed) -> None:
    """A sequence gives the same bits wherever it lies, and whatever stands before and after it."""
    tokens, mask = ids(), lengths(7, 20, 3, 12)
    (last, *_) = bert.compiled(tokens, mask)
    for order in ([1, 0, 3, 2], [3, 2, 1, 0]):
        (moved, *_) = bert.compiled(tokens[order], mask[order])
        assert torch.equal(moved, last[order])
    other = torch.where(torch.arange(BATCH)[:, None] == 3, tokens, ids(1))
    (moved, *_) = bert.compiled(other, lengths(20, 1, 11, 12))
    assert torch.equal(moved[3], last[3])


def sequences(*lengths: int, heads: int, dim: int) -> dict[str, Any]:
    """Operands of `attend_packed` for sequences of these lengths."""
    rng, rows = np.random.default_rng(0), sum(lengths)
    x = {n: rng.standard_normal((rows, heads, dim)).astype(np.float32) for n in "qkv"}
    seq = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return {**x, "seq": seq, "starts": np.cumsum([0, *lengths], dtype=np.int32)}


def attended(given: dict[str, Any], scale: float) -> Any:
    """Their attention, four ways."""
    b, heads = GraphBuilder("forward"), given["q"].shape[1]
    names = [b.add_input(n, tensor("f32" if n in "qkv" else "i32", *x.shape)) for n, x in given.items()]
    b.output(b.op("attend_packed", *names, heads=heads, kv_heads=heads, scale=scale), "y")
    fused = run_passes(b.module(), "canonicalize, fuse").module
    program = run_passes(fused, ", ".join(LOWERING)).program
    return four_values(fused, program, "forward", given, WeightStore())


def test_values_of_another_sequence_that_are_not_finite_stay_there() -> None:
    """In a tile of rows that several sequences share, and in keys behind the end of one."""
    given = sequences(5, 4, 11, heads=1, dim=8)
    given["k"][5:9], given["v"][5:9] = np.nan, np.inf
    with np.errstate(all="ignore"):
        values = attended(given, scale=0.3)
    for found in values.values():
        y = found["y"]
        assert np.isfinite(y[:5]).all() and np.isnan(y[5:9]).all() and np.isfinite(y[9:]).all()


@pytest.mark.slow
def test_sequences_longer_than_the_scores_that_are_kept() -> None:
    """300 keys are two slices."""
    assert_agree(attended(sequences(10, 300, heads=2, dim=12), scale=0.5), 2e-5)


# ------------------------------------------------------------------ other ways to ask for it
def test_a_saved_model_packs_too(bert: Packed, tmp_path: Path) -> None:
    """The runtime counts rows itself: callers give no such symbol."""
    bert.compiled.save(tmp_path / "bert.tw")
    saved = tw.load(tmp_path / "bert.tw")
    for mask in ("right-padded", "an empty sequence, and one token"):
        want = bert.compiled(ids(), MASKS[mask])
        got = saved(ids().numpy(), MASKS[mask].numpy())
        for a, b in zip(got, want, strict=True):  # type: ignore[call-overload]
            np.testing.assert_array_equal(np.asarray(a), b.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile(dynamic: bool) -> None:
    torch._dynamo.reset()
    model = Encoder("bert").eval()
    options = {"pack": True, "strict": True}
    f = torch.compile(model, backend="tilewright", dynamic=dynamic, fullgraph=True, options=options)
    for mask in list(MASKS.values())[: 6 if dynamic else 3]:
        with torch.no_grad():
            same(f(ids(), mask), wanted(model, ids(), mask))
    if dynamic:
        tokens, mask = ids()[:3, :13], MASKS["holes"][:3, :13]
        with torch.no_grad():
            same(f(tokens, mask), wanted(model, tokens, mask))


def test_torch_compile_says_what_is_not_packed(caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    made, reason = DECLINED["causal too"]
    model, keep = Attention(made).eval(), torch.arange(6) < torch.tensor([[4], [6]])
    x = torch.randn(2, 6, 8)
    with caplog.at_level("WARNING", "tilewright"), torch.no_grad():
        got = torch.compile(model, backend="tilewright", options={"pack": True})(x, keep)
        torch.testing.assert_close(got, model(x, keep), rtol=1e-5, atol=1e-5)
    (line,) = (r.getMessage() for r in caplog.records)
    assert line.startswith("tilewright: not packed at test_pack_tokens.py:") and "shows a token other" in line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["roberta", "electra", "distilbert"])
def test_other_encoders(name: str, tmp_path: Path) -> None:
    """By a recipe file."""
    model, example = Encoder(name).eval(), (ids(), MASKS["right-padded"])
    (tmp_path / "packed.toml").write_text('base = "f32"\npack = true\n')
    compiled = tw.compile(model, example_inputs=example, recipe=tmp_path / "packed.toml")
    assert "2 attentions" in packs(compiled.notes)[0]
    for mask in MASKS.values():
        same(compiled(ids(), mask), wanted(model, ids(), mask))


#: by model: notes, and how many of its linear layers compute kept tokens alone
GRAPHS = {"albert": (1, 13, 13), "esm": (1, 8, 9), "modernbert": (2, 8, 9)}


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_of_other_encoders(name: str) -> None:
    """Also where a layer with a window computes all tokens between packed ones."""
    model, example = Encoder(name).eval(), (ids(), MASKS["right-padded"])
    module, memory = capture_module(exported(model, example, None), None, None)
    passes = "canonicalize, recognise, canonicalize, merge-linears, pack-tokens, canonicalize"
    record = run_passes(module, passes)
    graph = record.module.graph("forward")
    rows = [str(op.result.type.shape[0]) for op in graph.ops if op.name == "linear"]
    assert (len(packs(record.notes)), rows.count("kept"), len(rows)) == GRAPHS[name]
    interpreter = Interpreter(record.module, WeightStore(memory=memory))
    for mask in MASKS.values():
        given = {v.name: x.numpy() for v, x in zip(graph.inputs, (ids(), mask), strict=True)}
        got = interpreter.run("forward", given)["output_0"][mask.bool().numpy()]
        with torch.no_grad():
            want = model(ids(), mask)[0][mask.bool()].numpy()
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["bf16", "w8a8"])
def test_other_types_are_those_of_the_unpacked_model(recipe: str) -> None:
    model, example = Encoder("bert").eval(), (ids(), MASKS["right-padded"])
    plain, packed = (tw.compile(model, example_inputs=example, recipe=recipe, pack=p) for p in (False, True))
    for mask in ("right-padded", "holes"):
        keep = MASKS[mask].bool()
        a, b = (c(ids(), MASKS[mask])[0][keep] for c in (plain, packed))  # type: ignore[index]
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


# ------------------------------------------------------------------ what is not packed
class Attention(nn.Module):
    """One attention whose mask is made by a function of the kept tokens."""

    def __init__(self, made: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.made, self.up = made, nn.Linear(8, 24)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        q, k, v = self.up(x).view(2, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        made: torch.Tensor = F.scaled_dot_product_attention(q, k, v, self.made(keep))
        return made.transpose(1, 2).reshape(2, 6, 8)


def every(keep: torch.Tensor) -> torch.Tensor:
    return keep[:, None, None, :].expand(2, 1, 6, 6)


#: how a mask is made of bool[2, 6], and what the note says
DECLINED = {
    "by distance": (
        lambda keep: keep[:, (torch.arange(6)[:, None] + torch.arange(6)) % 6][:, None],
        "its mask shows a token other tokens than those that %keep keeps",
    ),
    "causal too": (
        lambda keep: every(keep) & torch.ones(6, 6).tril().bool(),
        "its mask shows a token other tokens than those that %keep keeps",
    ),
    "a bias": (
        lambda keep: torch.where(every(keep), 0.5, -torch.inf),
        "its mask adds to scores that it does not hide",
    ),
}  # fmt: skip
PACKED = {
    "bool": every,
    "of both tokens": lambda keep: every(keep) & keep[:, None, :, None],
    "added": lambda keep: torch.where(every(keep), 0.0, -torch.inf),
    "inverted": lambda keep: ~every(~keep),
}


def record_of(made: Any) -> Any:
    model, keep = Attention(made).eval(), torch.arange(6) < torch.tensor([[4], [6]])
    module, _ = capture_module(exported(model, (torch.randn(2, 6, 8), keep), None), None, None)
    return run_passes(module, "canonicalize, recognise, canonicalize, pack-tokens")


@pytest.mark.parametrize("name", DECLINED)
def test_another_use_of_the_mask_is_declined(name: str) -> None:
    made, reason = DECLINED[name]
    record = record_of(made)
    (note,) = packs(record.notes)
    assert "declined" in note and note.endswith(reason)
    assert record.module.graph("forward").ops == record.stage("canonicalize").ir.graph("forward").ops


@pytest.mark.parametrize("name", PACKED)
def test_the_mask_is_understood_however_it_is_spelled(name: str) -> None:
    record = record_of(PACKED[name])
    assert "applied" in packs(record.notes)[0]
    assert [op.name for op in record.module.graph("forward").ops].count("attend_packed") == 1


def test_without_attention_there_is_a_note() -> None:
    b = GraphBuilder("forward")
    b.output(b.op("relu", b.add_input("x", tensor("f32", 2, 3))), "y")
    (note,) = packs(run_passes(b.module(), "canonicalize, pack-tokens").notes)
    assert note == "pack-tokens: pack declined at graph @forward: no attention is recognised"


def test_refused_together_with_fewer_tokens_and_for_language_models() -> None:
    with pytest.raises(RefusedError, match="tokens=tome\\(r=2\\) together with pack"):
        resolve_recipe("f32", tokens="tome(r=2)", pack=True)
    decoder = Module((), meta=(("kind", "decoder"),))
    with pytest.raises(RefusedError, match="pack for a language model with caches"):
        run_pipeline(decoder, resolve_recipe("f32", pack=True))
    with pytest.raises(RefusedError, match="option pack: expected bool, got 'yes'"):
        from tilewright.dynamo.options import parse_options

        parse_options({"pack": "yes"})
