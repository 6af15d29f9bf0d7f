"""Fisher information: gradients equal PyTorch's, weighted k-means, and messages for unsupported models."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.compiler.families import eager_logits, write_model
from tilewright.calibration.fisher import fisher
from tilewright.calibration.samples import SampleSize, samples_of
from tilewright.capture import capture_directory
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.solver import Statistics, parse_stored
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.base import PassContext
from tilewright.passes.driver import run_passes
from tilewright.passes.pipelines import MERGED, pipeline_text

IDS = np.random.default_rng(0).integers(3, 96, 160)
STEPS = pipeline_text(MERGED)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_squared_gradients_are_those_of_eager_pytorch(family: str, tmp_path: Path) -> None:
    """Every weight that a linear reads, merged ones row by row."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path / family
    write_model(folder, family)
    module = run_passes(capture_directory(folder), STEPS, None, PassContext()).module
    graph = module.graphs[0]
    names = list(dict.fromkeys(op.operands[1][1:] for op in graph.ops if op.name == "linear"))
    store = WeightStore(folder)
    samples = samples_of([IDS], module, folder, SampleSize(5, 32))
    files = {n: tmp_path / f"{k}.fisher" for k, n in enumerate(names)}
    fisher(module, store, samples, files, tmp_path / "work")
    assert not (tmp_path / "work").exists()

    eager = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    eager.lm_head.weight = torch.nn.Parameter(
        eager.lm_head.weight.detach().clone()
    )  # where tied: the head by itself
    kept = {n: p for n, p in eager.named_parameters() if p.ndim == 2 and "embed" not in n and "wte" not in n}
    want: dict[str, np.ndarray] = {n: np.zeros(p.shape, np.float32) for n, p in kept.items()}
    for sample in samples:
        eager.zero_grad()
        ids = torch.from_numpy(np.asarray(sample["ids"], np.int64))
        eager(input_ids=ids, labels=ids).loss.backward()
        for n, p in kept.items():
            want[n] += p.grad.square().numpy() / len(samples)  # type: ignore[union-attr]
    turned = [n for n in kept if "c_" in n]  # gpt2 stores them [K, N]
    values = {
        n: np.ascontiguousarray(p.detach().numpy().T if n in turned else p.detach().numpy())
        for n, p in kept.items()
    }
    place = {row.tobytes(): (n, k) for n, x in values.items() for k, row in enumerate(x)}
    weights, met = module.weight_map(), 0
    for name in names:
        w, found = np.asarray(store.load(weights[name]), np.float32), np.load(files[name])
        assert found.shape == w.shape and found.any(), name
        for row, ours in zip(w, found, strict=True):
            n, k = place[row.tobytes()]
            theirs = want[n][:, k] if n in turned else want[n][k]
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-4 * max(float(theirs.max()), 1e-12))
            met += 1
    assert met == sum(int(weights[n].type.shape[0]) for n in names)


def test_one_layer_alone_and_a_batch_of_two_are_the_same_gradients(tmp_path: Path) -> None:
    """Nothing behind the first wanted weight is gone through, and no token follows another sequence's
    last."""
    folder = tmp_path / "llama"
    write_model(folder, "llama")
    module = run_passes(capture_directory(folder), STEPS, None, PassContext()).module
    names = [op.operands[1][1:] for op in module.graphs[0].ops if op.name == "linear"]
    store, one = WeightStore(folder), samples_of([IDS], module, folder, SampleSize(2, 32))
    files = [{n: tmp_path / f"{k}{tag}" for k, n in enumerate(names)} for tag in ("all", "last")]
    fisher(module, store, one, files[0], tmp_path / "work")
    fisher(module, store, one, {names[-2]: files[1][names[-2]]}, tmp_path / "work")
    np.testing.assert_allclose(*(np.load(f[names[-2]]) for f in files), rtol=1e-3, atol=1e-12)
    both = {n: np.concatenate([s[n] for s in (one[0], one[0])]) for n in one[0]}
    twice = tmp_path / "twice"
    fisher(module, store, [both], {names[-1]: twice}, tmp_path / "work")
    once = tmp_path / "once"
    fisher(module, store, one[:1], {names[-1]: once}, tmp_path / "work")
    np.testing.assert_allclose(np.load(twice), np.load(once), rtol=1e-4, atol=1e-12)


def seen(w: np.ndarray, rng: np.random.Generator) -> Statistics:
    x = rng.standard_normal((256, w.shape[1])).astype(np.float32)
    fisher = (
        np.square(rng.standard_normal(w.shape) * np.exp(2 * rng.standard_normal(w.shape))).astype(np.float32)
        * 1e-9
    )
    return Statistics(2 / 256 * x.T @ x, np.abs(x).mean(0), np.abs(x).max(0), 256, fisher)


@pytest.mark.parametrize("encoding", ["codebook3", "codebook4", "planes2(group=64)", "int3(group=64)"])
def test_the_weighted_loss_is_below_that_of_plain_k_means_and_of_uniform_codes(encoding: str) -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((40, 256)).astype(np.float32)
    statistics = seen(w, rng)
    assert statistics.fisher is not None

    def loss(text: str) -> float:
        solver, stored = parse_stored(text)
        e = parse_encoding(stored)
        streams = (
            e.encode(w) if solver is None else solver.solve(w, statistics if "flsq" in text else None, e)
        )
        return float((statistics.fisher * (e.decode(streams) - w) ** 2).sum())  # type: ignore[operator]

    assert loss(f"flsq({encoding})") < min(loss(f"lsq({encoding})"), loss(encoding))
    if encoding.startswith("codebook"):
        assert loss(f"flsq({encoding})") < loss(f"int{encoding[-1]}(channel)")


def test_through_a_compilation_and_again_from_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    write_model(folder, "llama")
    given = {
        "weights": "flsq(int4(group=32))",
        "activations": "f32",
        "samples": 3,
        "sample_tokens": 32,
        "work": tmp_path / "work",
    }
    first, second = (tw.compile(folder, calibrate=[IDS], **given) for _ in range(2))  # type: ignore[arg-type]
    assert not list((tmp_path / "work").rglob("*.fisher")) and not list((tmp_path / "work").rglob("forward"))
    solved = [w for w in first.program.weights if "flsq" in str(w.source)]
    assert len(solved) == 2 * 4 + 1
    for w in solved:
        a, b = (c.store.streams(w, 0, 8) or {} for c in (first, second))
        assert a and all((a[s] == b[s]).all() for s in a)
    out = np.asarray(first(IDS[:20]), np.float32)
    want = eager_logits(folder, IDS[None, :20])[0]
    assert np.corrcoef(out.reshape(-1), want.reshape(-1))[0, 1] > 0.8


@pytest.mark.parametrize(("recipe", "told"), [
    ('weights = "flsq(int4(group=32))"',
     "Fisher information is not supported for experts: @model.layers.0.mlp.experts"),
    ('weights = "f32"\n[rules]\n"*self_attn*" = "flsq(int4(group=16))"',
     "needs a gradient that this op does not have"),
])  # fmt: skip
def test_what_experts_are_told(recipe: str, told: str, tmp_path: Path) -> None:
    """They have none themselves, and gradients do not go through a router."""
    folder, file = tmp_path / "mixtral", tmp_path / "recipe.toml"
    write_model(folder, "mixtral")
    file.write_text(recipe, "utf-8")
    with pytest.raises(RefusedError, match=re.escape(told)) as why:
        tw.compile(folder, recipe=str(file), calibrate=[IDS], samples=2, sample_tokens=32)
    assert "use wlsq" in str(why.value)


def test_a_sample_of_one_token_has_no_next(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    write_model(folder, "llama")
    with pytest.raises(RefusedError, match="sample_tokens: expected an integer of at least 2, got 1"):
        tw.compile(folder, calibrate=[IDS], weights="flsq(int4(group=32))", samples=3, sample_tokens=1)


def test_what_has_no_next_token_is_refused() -> None:
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 32))
    x = torch.randn(40, 64)
    with pytest.raises(RefusedError, match="needs token ids in and logits out; this model takes") as told:
        tw.compile(net, example_inputs=(x,), weights="flsq(codebook3)", calibrate=[x.numpy()])
    assert "use wlsq" in str(told.value)
