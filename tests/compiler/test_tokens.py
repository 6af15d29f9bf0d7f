"""The embedded vision transformer over fewer tokens, as users compile it: accuracy, files, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import tilewright as tw
from benchmarks.token_quality import load, measure, texts
from tilewright.cli.app import cli
from tilewright.ir.errors import RefusedError
from tilewright.recipe import resolve_recipe

IMAGES = 100


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any, Any]:
    model, images, labels = load()
    return model, images[:IMAGES], labels[:IMAGES]


@pytest.mark.slow
def test_all_tokens_as_in_pytorch(digits: tuple[Any, Any, Any]) -> None:
    model, images, labels = digits
    with torch.no_grad():
        want = model(images).logits.numpy()
    got = np.asarray(tw.compile(model, example_inputs=(images,), recipe="f32")(images).logits)  # type: ignore[attr-defined]
    assert np.abs(got - want).max() < 1e-4
    assert (got.argmax(1) == labels).mean() >= 0.95


def test_accuracy_over_fewer_tokens(digits: tuple[Any, Any, Any], tmp_path: Path) -> None:
    """70% kept three times: from a saved artifact, whose recipe says so."""
    model, images, labels = digits
    compiled = tw.compile(model, example_inputs=(images,), recipe="f32", tokens="evit(keep=0.7)")
    assert [n for n in compiled.notes if "47 to 35 tokens after layer 3" in n]
    compiled.save(tmp_path / "vit.tw")
    loaded = tw.load(tmp_path / "vit.tw")
    logits = np.asarray(loaded(images.numpy())["logits"])  # type: ignore[index, call-overload]
    assert (logits.argmax(1) == labels).mean() >= 0.93
    assert loaded.manifest.recipe["tokens"] == "evit(keep=0.7)"
    shown = CliRunner().invoke(cli, ["inspect", str(tmp_path / "vit.tw")]).output
    assert "tokens\n  cut  65 to 47 tokens after layer 1, kept by first token's attention, the rest" in shown


@pytest.mark.slow
def test_the_table_of_accuracies(digits: tuple[Any, Any, Any]) -> None:
    """Every reducer at half of the tokens keeps nearly all of the accuracy."""
    for _, text in texts("")[6:12]:
        found = measure(*digits, "f32", text)
        assert found.accuracy >= 0.93, text
        assert 33 <= found.tokens[-1] <= 38, text


def test_recipes_name_reducers(tmp_path: Path) -> None:
    path = tmp_path / "half.toml"
    path.write_text('base = "w8a8"\ntokens = "tome(keep=0.5)"\n')
    assert resolve_recipe(path).tokens == "tome(keep=0.5)"
    with pytest.raises(RefusedError, match="unknown token reduction 'tomb'\n  help: did you mean tome"):
        resolve_recipe("f32", tokens="tomb(r=1)")


def test_language_models_keep_all_tokens(repo: Path) -> None:
    with pytest.raises(RefusedError) as e:
        tw.compile(repo / "examples/models/tiny-llama", tokens="pyramid")
    assert str(e.value) == (
        "tokens: refused: tokens=pyramid for a language model with caches\n"
        "  help: omit it: tokens are cut in encoders, compiled as plain modules; a decoder's caches need all"
    )
