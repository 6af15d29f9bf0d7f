"""Recipes: presets, TOML files, overrides, and what they say when they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilewright.ir.errors import RefusedError
from tilewright.passes.base import parse_pipeline
from tilewright.recipe import PRESETS, Recipe, load_recipe, resolve_recipe


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", ["decoder", "plain"])
def test_presets_are_pipelines(name: str, kind: str) -> None:
    passes = parse_pipeline(resolve_recipe(name).pipeline(kind, lowering=True))
    assert [p.name for p in passes][-1] == "plan-memory"


def test_overrides_win() -> None:
    r = resolve_recipe("w4a8", weights="int8(group=64)", kv="f32")
    assert (r.weights, r.activations, r.kv) == ("int8(group=64)", "int8(token)", "f32")
    assert resolve_recipe(None) == PRESETS["bf16"]
    assert resolve_recipe(r) == r


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'base = "int4"\nhead = "int8(channel)"\ncontext = 1024\n[rules]\n"*.down_proj.weight" = "bf16"\n'
    )
    r = load_recipe(path)
    assert r == Recipe(
        "mine",
        weights="int4(group=32)",
        head="int8(channel)",
        context=1024,
        rules=(("*.down_proj.weight", "bf16"),),
    )
    assert resolve_recipe(str(path)) == r
    text = r.pipeline("decoder")
    assert (
        'encode-weights{head="int8(channel)", rules=[["*.down_proj.weight", bf16]], weights="int4(group=32)"}'
        in text
    )
    assert "incrementalize{context=1024, kv=bf16}" in text
    assert r.stated()["rules"] == [["*.down_proj.weight", "bf16"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('weigths = "bf16"', "unknown field 'weigths'\n  help: did you mean weights?"),
        ("context = \"many\"", "field context must be int, got 'many'\n  help: write context = 2048"),
        ('base = "int5"', "base 'int5' is not a preset\n  help: presets: f32, bf16, int8, int4, w8a8, w4a8"),
        ("rules = 3", "rules must map patterns to encodings, got 3"),
        ("x = = 1", "is not TOML: "),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(RefusedError) as e:
        load_recipe(path)
    assert message in str(e.value)
    assert str(e.value).startswith(str(path))


def test_unknown_names() -> None:
    with pytest.raises(RefusedError, match="unknown recipe 'w4a9'\n  help: did you mean w4a8"):
        resolve_recipe("w4a9")
    with pytest.raises(RefusedError, match="weights: unknown encoding 'int9'"):
        resolve_recipe(weights="int9")
    with pytest.raises(RefusedError, match="there is no such file"):
        resolve_recipe(Path("nowhere.toml"))
