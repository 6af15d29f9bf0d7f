"""AWQ and SmoothQuant: the rewritten graph computes the same, and each chooses factors as its paper says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tilewright.ir.encodings
import tilewright.passes.solvers  # noqa: F401
from tests.compiler.families import write_model
from tests.passes.test_solvers import statistics, weights
from tilewright.calibration.equalization import Factors, choose_factors
from tilewright.calibration.segments import Segment
from tilewright.capture import capture_directory
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.graph.core import Module
from tilewright.ir.interp.graph import run_graph
from tilewright.ir.solver import Statistics
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes import pipelines
from tilewright.passes.calibrate import entered
from tilewright.passes.channel_factors import Change, fold_of
from tilewright.passes.driver import run_passes
from tilewright.passes.patterns import View
from tilewright.passes.pipelines import pipeline_text
from tilewright.passes.rewrite import Declined
from tilewright.passes.solvers.equalize import Awq, SmoothQuant, loss, rescaled
from tilewright.passes.solvers.gptq import objective

F32 = NDArray[np.float32]
MERGED = pipeline_text(pipelines.MERGED)
#: family -> how many inputs of linears its weights can absorb factors of
FAMILIES = {"llama": 9, "gemma2": 9, "qwen2": 9, "qwen3": 9, "opt": 9, "gpt2": 6, "phi3": 9}


def captured(folder: Path, family: str) -> tuple[Module, WeightStore]:
    write_model(folder, family)
    return run_passes(capture_directory(folder), MERGED).module, WeightStore(folder)


def logits(module: Module, store: WeightStore) -> F32:
    ids = np.random.default_rng(0).integers(3, 96, (1, 24)).astype(np.int32)
    pos = np.arange(24, dtype=np.int32)[None]
    given = {v.name: ids if v.name == "ids" else pos for v in module.graphs[0].inputs}
    return np.asarray(next(iter(run_graph(module, module.graphs[0].name, given, store).values())), np.float32)


@pytest.mark.parametrize(
    "family",
    [f if f in ("llama", "gemma2", "opt") else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES],
)
def test_without_rounding_nothing_changes(family: str, tmp_path: Path) -> None:
    module, store = captured(tmp_path, family)
    before = logits(module, store)
    view, rng = View(module, module.graphs[0]), np.random.default_rng(1)
    inputs: dict[str, list[str]] = {}
    for op in module.graphs[0].ops:
        if op.name == "linear":
            inputs.setdefault(op.operands[0], []).append(op.operands[1][1:])
    found: dict[str, Change] = {}
    folded = 0
    for x, readers in inputs.items():
        try:
            fold = fold_of(view, x, set(readers))
        except Declined:
            continue
        folded += 1
        t = np.exp(rng.uniform(-2, 2, fold.size)).astype(np.float32)
        changes = {w: Change((t[fold.classes][None],)) for w in readers}
        changes |= fold.changes(t, int(view.weights[fold.weight].type.shape[0]))
        for name, change in changes.items():
            found[name] = change.after(found.get(name))
    assert folded == FAMILIES[family]
    Factors(changes=found).save(tmp_path / "f.safetensors")
    store.solved = tmp_path
    after = logits(entered(module, Factors(changes=found).solutions("f.safetensors")), store)
    np.testing.assert_allclose(after, before, atol=2e-5 * float(np.ptp(before)))


def test_awq_is_never_above_nearest_and_below_it_on_outliers() -> None:
    w, seen = weights(), statistics()
    scale = np.ones(128, np.float32)
    scale[::16] = 30
    loud = Statistics(
        seen.h * scale * scale[:, None], seen.mean_abs * scale, seen.absmax * scale, seen.tokens
    )
    group = [(w, parse_encoding("int4(group=32)")), (w[:16], parse_encoding("int8(channel)"))]
    each = np.arange(128)
    for s in (seen, loud):
        t = Awq().factors(group, s, each)
        assert loss(group, s.h, t) <= loss(group, s.h, np.ones(128, np.float32))
    assert loss(group, loud.h, t) < 0.5 * loss(group, loud.h, np.ones(128, np.float32))
    assert t[::16].min() > t[1::16].max()


def test_awq_loss_is_the_objective_in_the_original_coordinates() -> None:
    w, seen, e = weights(), statistics(), parse_encoding("int4(group=32)")
    t = np.exp(np.random.default_rng(0).normal(0, 1, 128)).astype(np.float32)
    here = objective(e.decode(e.encode(w * t)) - w * t, rescaled(seen, t).h).sum()
    assert abs(here / loss([(w, e)], seen.h, t) - 1) < 1e-3


def test_smoothquant_evens_activations_out() -> None:
    w, seen = weights(), statistics()
    scale = np.ones(128, np.float32)
    scale[5] = 100
    loud = replace(seen, absmax=seen.absmax * scale)
    t = SmoothQuant().factors([(w, parse_encoding("int8(channel)"))], loud, np.arange(128))
    after = loud.absmax / t
    assert after.max() / after.mean() < 0.2 * loud.absmax.max() / loud.absmax.mean()
    whole = SmoothQuant(alpha=1.0).factors([(w, parse_encoding("int8(channel)"))], loud, np.arange(128))
    assert np.ptp(loud.absmax / whole) < 1e-4 * (loud.absmax / whole).max()
    shared = SmoothQuant().factors([(w, parse_encoding("int8(channel)"))], loud, np.arange(128) % 64)
    assert shared.shape == (64,)


def test_what_cannot_fold_says_why(tmp_path: Path) -> None:
    module, _ = captured(tmp_path, "llama_tied")
    view = View(module, module.graphs[0])
    head = next(op for op in reversed(module.graphs[0].ops) if op.name == "linear")
    with pytest.raises(Declined, match="has other readers"):
        fold_of(view, head.operands[0], {head.operands[1][1:]})


def test_factors_keep_what_they_hold(tmp_path: Path) -> None:
    one = np.arange(1, 4, dtype=np.float32)
    kept = Factors(
        {"%1": one}, {"a.w": Change((one[None], one[:, None])), "n": Change((one,), one - 1)}, {"%2": "why"}
    )
    kept.save(tmp_path / "f.safetensors")
    back = Factors.load(tmp_path / "f.safetensors")
    assert back.declined == {"%2": "why"} and (back.inputs["%1"] == one).all()
    assert len(back.changes["a.w"].muls) == 2 and back.changes["a.w"].add is None
    n = back.changes["n"].add
    assert n is not None and (n == one - 1).all()


def test_a_group_with_two_solvers_is_declined(tmp_path: Path) -> None:
    module, _ = captured(tmp_path, "llama")
    view = View(module, module.graphs[0])
    segment = Segment(0, 1, (("%x", "a"), ("%x", "b")), (), (), 0, 0)
    found = choose_factors(
        view, segment, {"a": Awq(), "b": SmoothQuant()}, lambda w: np.ones((2, 2), np.float32), {}
    )
    assert found.declined == {"%x": "a: weights that share an input have different solvers"}
