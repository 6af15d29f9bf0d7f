"""Perplexity, divergence and benchmark arithmetic against their definitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tilewright.runtime.artifact import read_artifact
from tilewright.runtime.benchmark import Workload, decode_bytes, matrix_elements, measure, peak_kind
from tilewright.runtime.errors import SessionError
from tilewright.runtime.evaluate import evaluate, windows_of
from tilewright.runtime.manifest import WeightEntry
from tilewright.runtime.model import load

RNG = np.random.default_rng(0)
TABLE = RNG.normal(0, 2, (50, 50)).astype(np.float32)


def forward(ids: np.ndarray) -> np.ndarray:
    return TABLE[ids]


def test_perplexity_is_the_mean_over_predicted_tokens() -> None:
    ids = RNG.integers(0, 50, 1000).tolist()
    q = evaluate(forward, ids, 256)
    p = np.exp(TABLE.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    losses = [
        -np.log(p[a, b])
        for w in range(3)
        for a, b in zip(ids[w * 256 : w * 256 + 255], ids[w * 256 + 1 : w * 256 + 256], strict=True)
    ]
    assert (q.windows, q.tokens, q.kl) == (3, 3 * 255, None)
    assert q.perplexity == pytest.approx(float(np.exp(np.mean(losses))), rel=1e-9)


def test_divergence_from_itself_and_from_another() -> None:
    ids = RNG.integers(0, 50, 300).tolist()
    same = evaluate(forward, ids, 100, other=forward)
    assert same.kl == pytest.approx(0, abs=1e-12) and same.same_top == 1
    other = evaluate(forward, ids, 100, other=lambda x: TABLE[x][:, ::-1].copy())
    assert other.kl is not None and other.kl > 1 and other.same_top is not None and other.same_top < 0.2


def test_windows_do_not_overlap() -> None:
    assert [len(w) for w in windows_of(range(1000), 300)] == [300, 300, 300]
    assert [len(w) for w in windows_of(range(10), 300)] == [10]
    assert len(windows_of(range(1000), 10, most=4)) == 4
    with pytest.raises(SessionError, match="the text has 1 tokens, and perplexity needs at least 2"):
        windows_of([1], 5)


def test_bytes_and_operations_come_from_what_a_step_reads(stub_path: Path) -> None:
    m = read_artifact(stub_path).manifest
    weights = (
        WeightEntry("embed", 64, 1000, 500, "f32[260, 8]", "bf16", "rows"),
        WeightEntry("norm", 1088, 32, 8, "f32[8]", "f32"),
        WeightEntry("mlp", 1152, 256, 128, "f32[16, 8]", "bf16"),
        WeightEntry("head", 1408, 4160, 2080, "f32[260, 8]", "bf16"),
    )
    m = replace(m, weights=weights, recipe={"activations": "int8(token)"})
    state = sum(s.bytes * m.limits["context"] / s.context for s in m.states)
    assert decode_bytes(m, 0, 1) == 32 + 256 + 4160
    assert decode_bytes(m, m.limits["context"], 3) == 32 + 256 + 4160 + 3 * state
    assert matrix_elements(m) == 128 and peak_kind(m) == "int8"


def test_a_benchmark_leaves_nothing_behind(stub_path: Path) -> None:
    model = load(stub_path, threads=1)
    speed = measure(model, Workload(prefill=20, decode=5, context=40, batch=3, repeats=2))
    assert speed.prefill_tok_s > 0 and speed.decode_tok_s > 0 and speed.threads == 1
    with pytest.raises(SessionError, match="the workload needs 105 positions, the context holds 100"):
        measure(model, Workload(prefill=20, decode=5, context=100))
