"""Wrong arguments of `tilewright.compile` are reported before any work; exported names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tilewright as tw
from tilewright.ir.errors import RefusedError

LINEAR, X = torch.nn.Linear(4, 4), torch.zeros(2, 4)
GIVE = "pass an `nn.Module` with example_inputs, or the path of a checkpoint directory"


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (None, {}, f"cannot compile None\n  help: {GIVE}"),
        (5, {}, f"cannot compile 5\n  help: {GIVE}"),
        (LINEAR.forward, {}, f"cannot compile a method\n  help: {GIVE}"),
        (torch.nn.Linear, {}, "cannot compile the class Linear\n  help: pass an instance: Linear(…)"),
        (LINEAR, {"example_inputs": 5},
         "example_inputs: expected a tuple of tensors, or a dict of keyword arguments, got 5"),
        (LINEAR, {"adapter": "x"}, "adapter is not supported for an `nn.Module`\n  help: leave it out"),
        ("x", {"example_inputs": (X,)},
         "example_inputs is not supported for a checkpoint directory\n  help: leave it out"),
        ("x", {"dynamic_shapes": ({},)},
         "dynamic_shapes is not supported for a checkpoint directory\n  help: leave it out"),
        ("x", {"weights": 5}, "weights: expected a non-empty string, got 5"),
        ("x", {"weights": ""}, "weights: expected a non-empty string, got ''"),
        ("x", {"target": b"avx2"}, "target: expected a non-empty string, got b'avx2'"),
        ("x", {"passes": ["fuse"]}, "passes: expected a non-empty string, got a list"),
        ("x", {"context": "x"}, "context: expected an integer of at least 1, got 'x'"),
        ("x", {"context": -5}, "context: expected an integer of at least 1, got -5"),
        ("x", {"samples": True}, "samples: expected an integer of at least 1, got True"),
        ("x", {"max_ram": -1}, "max_ram: expected an integer of at least 0, got -1"),
        ("x", {"progress": 5}, "progress: expected a function of (text, done, total), got 5"),
        ("x", {"calibrate": 5}, ("calibrate: expected the path of a text file or of token ids, or an "
                                "iterable of samples, got 5")),
        ("x", {"tuning": 5}, "tuning: expected a path, got 5"),
        ("x", {"work": ""}, "work: expected a path, got ''"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(model: object, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError) as e:
        tw.compile(model, **options)
    assert str(e.value) == f"compile: refused: {message}"


def test_a_recipe_is_a_name_a_file_or_a_mapping() -> None:
    with pytest.raises(RefusedError) as e:
        tw.compile(LINEAR, example_inputs=(X,), recipe=5)  # type: ignore[arg-type]
    assert str(e.value) == "recipe: refused: expected the name of a preset, a TOML file or a mapping, got 5"


def test_levels_are_checked_before_the_work() -> None:
    with pytest.raises(
        ValueError, match="unknown target 'sse9'; expected native, all, or some of baseline, "
    ):
        tw.compile("no-model", target="sse9")


def test_saving_wants_a_path_and_the_repr_is_short() -> None:
    compiled = tw.compile(LINEAR, example_inputs=(X,), recipe="f32")
    with pytest.raises(RefusedError) as e:
        compiled.save(None)  # type: ignore[arg-type]
    assert (
        str(e.value)
        == "save: refused: expected a path, got None\n  help: pass the artifact's path, such as model.tw"
    )
    assert len(repr(compiled)) < 400


def test_an_adapter_that_is_none_is_refused_though_the_model_is_known(
    tiny_llama: Path, tmp_path: Path
) -> None:
    tw.compile(tiny_llama)  # kept from now on
    with pytest.raises(RefusedError) as e:
        tw.compile(tiny_llama, adapter=tmp_path)
    assert (
        str(e.value) == f"{tmp_path}: refused: no adapter_config.json\n  help: pass a directory saved by PEFT"
    )


def test_the_package_offers_its_names_and_no_others() -> None:
    public = [n for n in dir(tw) if not n.startswith("_")]
    assert public == sorted(n for n in tw.__all__ if not n.startswith("_"))
    assert {"SessionError", "ArtifactError"} <= set(public) and all(hasattr(tw, n) for n in public)
    assert not hasattr(tw, "annotations") and not hasattr(tw, "import_module")
