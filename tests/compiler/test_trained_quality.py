"""Lower-bit encodings on the trained model: perplexity grows in the expected order and within stated limits.

The text is the project's own documentation. Random weights could not show this.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.recipe import Recipe
from tilewright.runtime.evaluate import evaluate
from tilewright.runtime.recall import questions, recall

pytestmark = pytest.mark.slow
WINDOWS = 12
#: how much larger than that of f32 the perplexity may be
LIMITS = {"bf16": 1.002, "int8": 1.005, "w8a8": 1.01, "int4": 1.05, "w4a8": 1.055}
#: the same of caches, everything else in f32
CACHES = {
    "int8(token)": 1.001, "int8(token) / int4(group=32, asym)": 1.01, "int4(token, asym)": 1.01,
}  # fmt: skip
#: caches of 4 bits on both sides that cost less than 1% of perplexity, and no fact, over long distances
FOUR_BITS = ["int4(group=32, asym) + recent(64)", "int4(token) + recent(64)"]
#: each recipe is at least as good as the next, but for noise
ORDER = [("f32", "int8"), ("int8", "int4"), ("w8a8", "w4a8"), ("bf16", "int4"), ("f32", "w8a8")]
NOISE = 1.002
#: bits per weight, scales and all
BITS = {"f32": 32, "bf16": 16.1, "int8": 8.2, "w8a8": 8.2, "int4": 4.6, "w4a8": 4.6}


@cache
def perplexity(directory: Path, text: str, recipe: str | Recipe) -> tuple[float, float]:
    """Perplexity and bits per weight of the model under a recipe."""
    model = tw.compile(directory, recipe=recipe).load()
    quality = evaluate(lambda piece: np.asarray(model(piece)), model.codec.encode(text), 512, WINDOWS)
    assert quality.windows == WINDOWS, "the text is too short"
    return quality.perplexity, model.manifest.bits_per_weight


@pytest.fixture(scope="module")
def text(repo: Path) -> str:
    return "\n".join(
        (repo / "docs" / f"{name}.md").read_text("utf-8") for name in ("concepts", "design", "ir")
    )


@pytest.mark.parametrize("recipe", LIMITS)
def test_it_costs_no_more_than_stated(tiny_llama: Path, text: str, recipe: str) -> None:
    exact, _ = perplexity(tiny_llama, text, "f32")
    got, bits = perplexity(tiny_llama, text, recipe)
    assert 1 < exact < 200
    assert got <= exact * LIMITS[recipe], f"{recipe}: {got:.3f}, f32: {exact:.3f}"
    assert bits <= BITS[recipe]


@pytest.mark.parametrize("kv", CACHES)
def test_a_cache_costs_no_more_than_stated(tiny_llama: Path, text: str, kv: str) -> None:
    exact, _ = perplexity(tiny_llama, text, "f32")
    got, _ = perplexity(tiny_llama, text, Recipe("kv", weights="f32", activations="f32", kv=kv))
    assert got <= exact * CACHES[kv], f"{kv}: {got:.3f}, f32: {exact:.3f}"


@cache
def over_a_distance(directory: Path, kv: str) -> tuple[float, int]:
    """Perplexity over windows of 1024 tokens, and how many of 16 questions about a fact 1024 tokens back are
    answered rightly."""
    model = tw.compile(directory, kv=kv).load()
    held_out = (directory.parents[1] / "heldout.txt").read_text("utf-8")
    quality = evaluate(lambda piece: np.asarray(model(piece)), model.codec.encode(held_out), 1024, WINDOWS)
    with model.session() as session:
        asked = questions(model.codec.encode, None, 1024, 31, 16)
        return quality.perplexity, sum(recall(session, asked))


@pytest.mark.parametrize("kv", FOUR_BITS)
def test_four_bits_cost_less_than_one_percent(repo: Path, kv: str) -> None:
    directory = repo / "examples" / "models" / "small-llama"
    (exact, known), (got, found) = over_a_distance(directory, "bf16"), over_a_distance(directory, kv)
    assert got <= exact * 1.01, f"{kv}: {got:.3f}, bf16: {exact:.3f}"
    assert found >= 0.95 * known and known >= 14


def test_without_recent_rows_four_bits_cost_more(repo: Path) -> None:
    """What the rows in bf16 are for."""
    directory = repo / "examples" / "models" / "small-llama"
    (exact, _), (got, _) = (over_a_distance(directory, kv) for kv in ("bf16", "int4(token)"))
    assert got > exact * 1.03, f"{got:.3f}, bf16: {exact:.3f}"


@pytest.mark.parametrize(("better", "worse"), ORDER)
def test_fewer_bits_are_not_better(tiny_llama: Path, text: str, better: str, worse: str) -> None:
    (a, _), (b, _) = perplexity(tiny_llama, text, better), perplexity(tiny_llama, text, worse)
    assert a <= b * NOISE, f"{better}: {a:.3f}, {worse}: {b:.3f}"


def test_rotation_helps_where_activations_are_narrow(tiny_llama: Path, text: str) -> None:
    """W4A4: what stands out in a token costs the others their bits, until the stream is turned (QuaRot)."""
    plain, offline, online = (
        perplexity(
            tiny_llama, text, Recipe("w4a4", weights="int4(group=32)", activations="int4(token)", rotate=r)
        )[0]
        for r in ("", "offline", "online")
    )
    assert online < offline < plain, f"{plain:.3f}, rotated {offline:.3f}, {online:.3f}"
    groups, _ = perplexity(
        tiny_llama, text, Recipe("w4a4", weights="int4(group=32)", activations="int4(token, group=32)")
    )
    assert groups < plain
