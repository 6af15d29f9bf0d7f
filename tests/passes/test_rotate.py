"""Rotation: H H^T = I, an unquantised model keeps its logits, and channels that stand out no longer do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.compiler.families import eager_logits, write_model
from tests.passes.test_equalize import logits
from tilewright.capture import capture_directory
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.graph.core import Apply, Module, Stored, Weight
from tilewright.ir.ops.rotation import hadamard
from tilewright.ir.types import TensorType
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.driver import run_passes
from tilewright.passes.rotate import block_of, rotated

READY = "canonicalize, recognise, canonicalize"
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("block", [1, 2, 16, 256])
def test_hadamard_is_orthogonal_and_its_own_inverse(block: int) -> None:
    h = hadamard(np.eye(block), block)
    np.testing.assert_allclose(h @ h.T, np.eye(block), atol=1e-12)
    np.testing.assert_allclose(np.abs(h), 1 / np.sqrt(block), rtol=1e-12)
    x = RNG.standard_normal((3, 2 * block))
    np.testing.assert_allclose(hadamard(hadamard(x, block), block), x, atol=1e-12)


def test_blocks_are_powers_of_two_that_divide() -> None:
    assert [block_of(n) for n in (704, 256, 96, 7)] == [64, 256, 32, 1] and block_of(4096, 256) == 256


def turned(folder: Path, family: str, online: bool) -> tuple[Module, Module, WeightStore, tuple[str, ...]]:
    write_model(folder, family)
    module = run_passes(capture_directory(folder), READY).module
    result = run_passes(module, f"rotate{{online={str(online).lower()}}}")
    return module, result.module, WeightStore(folder), tuple(map(str, result.notes))


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen3"])
def test_without_rounding_logits_are_unchanged(family: str, online: bool, tmp_path: Path) -> None:
    before, after, store, notes = turned(tmp_path, family, online)
    assert any("rotate applied" in n for n in notes)
    want = logits(before, store)
    np.testing.assert_allclose(logits(after, store), want, atol=1e-4 * float(np.ptp(want)))
    names = [op.name for op in after.graphs[0].ops]
    assert names.count("fwht") == (2 if online else 0)
    moved = [w for w, old in zip(after.weights, before.weights, strict=False) if w.source != old.source]
    assert len(moved) >= 2 * 9


@pytest.mark.parametrize(
    ("family", "reason"), [("gemma2", "rms_norm adds a value to the residual stream"), ("gpt2", "")]
)
def test_what_cannot_turn_is_left_and_told(family: str, reason: str, tmp_path: Path) -> None:
    before, after, _, notes = turned(tmp_path, family, True)
    assert before == after and any("rotate declined" in n and reason in n for n in notes)


def test_rows_of_a_rotated_weight_are_read_alone() -> None:
    w = RNG.standard_normal((32, 16)).astype(np.float32)
    store = WeightStore(memory={"w": w, "g": RNG.standard_normal(16).astype(np.float32)})
    gain = Apply("reshape", (Stored("memory", "g"),), (("shape", (1, 16)),))
    source = rotated(rotated(Apply("mul", (Stored("memory", "w"), gain)), 1, 16, 3), 0, 8, 4, (8, 24))
    weight = Weight("w", TensorType("f32", (32, 16)), source)
    store.check(weight)
    np.testing.assert_array_equal(
        np.concatenate([store.rows(weight, n, n + 16) for n in (0, 16)]), store.load(weight)
    )
    assert abs(np.linalg.norm(store.load(weight)) / np.linalg.norm(w * store.memory["g"]) - 1) < 1e-5


def test_outliers_spread_and_four_bits_lose_less() -> None:
    """Weights and activations of 4 bits with a few loud channels."""
    x, w = (
        RNG.standard_normal((64, 256)).astype(np.float32),
        RNG.standard_normal((64, 256)).astype(np.float32),
    )
    x[:, ::64] *= 40
    four = parse_encoding("int4(channel)")

    def loss(x: np.ndarray, w: np.ndarray) -> float:
        a, b = (four.decode(four.encode(np.ascontiguousarray(v, np.float32))) for v in (x, w))
        return float(np.linalg.norm(a @ b.T - x @ w.T) / np.linalg.norm(x @ w.T))

    assert loss(hadamard(x, 256), hadamard(w, 256)) < 0.7 * loss(x, w)


@pytest.mark.parametrize("online", [pytest.param("offline", marks=pytest.mark.slow), "online"])
def test_a_rotated_model_compiles(online: str, tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    ids = RNG.integers(3, 96, 24)
    want = eager_logits(tmp_path, ids[None])[0]
    got = np.asarray(tw.compile(tmp_path, recipe="f32", rotate=online)(ids), np.float32)
    np.testing.assert_allclose(got, want, atol=1e-4 * float(np.ptp(want)))
    small = tw.compile(
        tmp_path, weights="gptq(int4(group=32))", activations="int8(token)", rotate=online,
        calibrate=[RNG.integers(3, 96, 400)],
        samples=4, sample_tokens=64,
    )  # fmt: skip
    assert np.corrcoef(np.asarray(small(ids)).reshape(-1), want.reshape(-1))[0, 1] > 0.8
