"""Checkpoint directories and recipes that are wrong: each error names file and field, before any work."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.compiler.calls import here
from tilewright.ir.errors import RefusedError
from tilewright.ir.weights.safetensors import SafeTensors

CORRECT = "correct the config, or download it again"
AGAIN = "download the file again, or remove it: a model without a tokenizer takes token ids"


def block(message: str, where: object, hint: str) -> str:
    return f"error: {message}\n  where: {where}\n  help: {hint}\n"


def folder_of(tiny_llama: Path, tmp_path: Path, **fields: object) -> Path:
    """The embedded model with some fields of its config changed."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_llama.iterdir():
        os.symlink(file, folder / file.name)
    config = json.loads((tiny_llama / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_attention_heads", 0, "num_attention_heads: expected an integer from 1 to 65536, got 0"),
        ("hidden_size", "big", "hidden_size: expected an integer from 1 to 16777216, got 'big'"),
        ("hidden_size", 256.5, "hidden_size: expected an integer from 1 to 16777216, got 256.5"),
        ("num_hidden_layers", 10**9, "num_hidden_layers: expected an integer from 1 to 4096, got 1000000000"),
        ("vocab_size", -1, "vocab_size: expected an integer from 1 to 1073741824, got -1"),
        ("rms_norm_eps", math.nan, "rms_norm_eps is NaN"),
        ("rms_norm_eps", "x", "rms_norm_eps: expected a number from 0 to 1, got 'x'"),
        ("rope_parameters", {"rope_theta": math.nan}, "rope_parameters.rope_theta is NaN"),
        ("model_type", 5, "model_type: expected a name, got 5"),
    ],
)
def test_configs_of_no_model(
    capsys: pytest.CaptureFixture[str],
    tiny_llama: Path,
    tmp_path: Path,
    field: str,
    value: object,
    message: str,
) -> None:
    folder = folder_of(tiny_llama, tmp_path, **{field: value})
    told = here(capsys, "compile", folder, "-o", tmp_path / "m.tw")
    assert told == (1, "", block(message, folder / "config.json", CORRECT))


def test_what_transformers_declines_is_said_in_its_words(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, tmp_path: Path
) -> None:
    folder = folder_of(tiny_llama, tmp_path, num_attention_heads=3)
    code, _, err = here(capsys, "compile", folder, "-o", tmp_path / "m.tw")
    assert (
        code == 1
        and err.startswith("error: transformers rejects it: ")
        and "not a multiple of the number of" in err
    )
    assert err.endswith(f"\n  where: {folder / 'config.json'}\n  help: {CORRECT}\n")


def test_a_model_that_transformers_cannot_build(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, tmp_path: Path
) -> None:
    folder = folder_of(tiny_llama, tmp_path, hidden_act="zzz")
    hint = "correct its config, or report the model if transformers can build it"
    told = here(capsys, "compile", folder, "-o", tmp_path / "m.tw")
    assert told == (1, "", block("cannot be built: KeyError: 'zzz'", "model type 'llama'", hint))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"garbage", "it is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("tokenizer.json", b"{}", "tokenizer.json cannot be read (Model missing. at line 1 column 2)"),
        ("tokenizer_config.json", b"[]", "expected a JSON object, got a list"),
        ("generation_config.json", b"", "it is not JSON: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_files_that_an_artifact_would_carry(
    capsys: pytest.CaptureFixture[str],
    tiny_llama: Path,
    tmp_path: Path,
    name: str,
    content: bytes,
    message: str,
) -> None:
    folder = folder_of(tiny_llama, tmp_path)
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    assert here(capsys, "compile", folder, "-o", tmp_path / "m.tw") == (
        1,
        "",
        block(message, folder / name, AGAIN),
    )


def test_tensors_that_overlap(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [12, 28]},
        "none": {"dtype": "F32", "shape": [0], "data_offsets": [12, 12]},
    }
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(28))
    with pytest.raises(RefusedError) as e:
        SafeTensors(file)
    assert str(e.value) == f"{file}: refused: tensors 'a' and 'b' overlap\n  help: the file is damaged"


@pytest.mark.parametrize("table", ["rules", "activation_rules"])
def test_a_rule_that_matches_no_weight(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, tmp_path: Path, table: str
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'[{table}]\n"*.down_prj.weight" = "bf16"\n')
    code, _, err = here(capsys, "compile", tiny_llama, "-o", tmp_path / "m.tw", "--recipe", recipe)
    where = "encode-weights" if table == "rules" else "quantize-activations"
    assert code == 1 and err.startswith(
        f"error: the rule '*.down_prj.weight' = 'bf16' matches no weight\n  where: {where}\n"
    )
    assert (
        "mlp.down_proj.weight" in err and "`tilewright dump DIR --stage merge-linears` lists all names" in err
    )


def test_the_hint_for_a_group_that_does_not_divide_is_toml(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, tmp_path: Path
) -> None:
    code, _, err = here(capsys, "compile", tiny_llama, "-o", tmp_path / "m.tw", "--weights", "int4(group=48)")
    hint = err.splitlines()[-1]
    assert code == 1 and hint.startswith(
        "  help: store them in another encoding, with a recipe file with [rules] and lines like "
    )
    line = hint.partition("lines like ")[2]
    recipe = tmp_path / "r.toml"
    recipe.write_text(f"[rules]\n{line}\n")
    from tilewright.recipe import load_recipe

    assert load_recipe(recipe).rules == (("model.embed_tokens.weight", "int8(channel)"),)


def test_passes_of_a_recipe_must_fuse_before_lowering(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("passes = 'canonicalize'\n")
    code, _, err = here(capsys, "compile", tiny_llama, "-o", tmp_path / "m.tw", "--recipe", recipe)
    assert code == 1 and err == (
        "error: needs 'fused' (ops are grouped into regions), which no earlier pass provides\n"
        "  where: lower\n  help: put fuse before it\n"
    )


def test_files_where_a_folder_is_meant(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, tmp_path: Path
) -> None:
    gguf, other = tmp_path / "m.gguf", tmp_path / "notes"
    for file in (gguf, other):
        file.write_bytes(b"GGUF")
    hint = (
        "pass the model that it was created from, a folder with config.json and *.safetensors; "
        "--weights supports GGUF's encodings"
    )
    assert here(capsys, "compile", gguf, "-o", tmp_path / "m.tw") == (
        1,
        "",
        block("GGUF files are not supported as input", gguf, hint),
    )
    hint = "pass a folder with config.json and *.safetensors, or a hub id: owner/model"
    message = "expected a checkpoint directory, got a file"
    assert here(capsys, "compile", other, "-o", tmp_path / "m.tw") == (1, "", block(message, other, hint))
    inside = tiny_llama / "config.json"
    hint = f"pass the folder that contains it: {tiny_llama}"
    assert here(capsys, "compile", inside, "-o", tmp_path / "m.tw") == (1, "", block(message, inside, hint))


@pytest.mark.parametrize("name", ["missing.tw", "missing/model.tw"])
def test_a_missing_artifact_is_not_asked_of_the_hub(capsys: pytest.CaptureFixture[str], name: str) -> None:
    hint = "create one with `tilewright compile DIR -o model.tw`"
    assert here(capsys, "dump", name) == (1, "", block("no such artifact", name, hint))


def test_options_that_would_be_ignored(
    capsys: pytest.CaptureFixture[str], stub_path: Path, tiny_llama: Path
) -> None:
    code, _, err = here(capsys, "dump", stub_path, "--recipe", "int4")
    assert code == 2 and "--recipe, --passes and --target are for a checkpoint directory" in err
    code, _, err = here(capsys, "inspect", stub_path, "--recipe", "int4")
    assert code == 2 and "--recipe is for a checkpoint directory" in err
    code, _, err = here(capsys, "inspect", tiny_llama, "--verify")
    assert code == 2 and "--verify is for an artifact" in err


def test_a_config_alone_can_be_looked_at(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, tmp_path: Path
) -> None:
    """Its shapes are those of the model; compiling it asks for the weights."""
    shutil.copy(tiny_llama / "config.json", tmp_path)
    alone = json.loads(here(capsys, "inspect", tmp_path, "--recipe", "w4a8", "--json")[1])
    whole = json.loads(here(capsys, "inspect", tiny_llama, "--recipe", "w4a8", "--json")[1])
    same = (
        "parameters",
        "bits_per_weight",
        "weights",
        "graphs",
        "kernels",
        "recipe",
        "weights_bytes",
        "states",
        "limits",
    )
    assert {k: alone[k] for k in same} == {k: whole[k] for k in same} and alone["bits_per_weight"] == 4.5168
    assert here(capsys, "dump", tmp_path, "--list")[1] == here(capsys, "dump", tiny_llama, "--list")[1]
    code, _, err = here(capsys, "compile", tmp_path, "-o", tmp_path / "m.tw")
    assert code == 1 and err.startswith(
        "error: no weights: expected model.safetensors or model.safetensors.index.json\n"
    )


def test_a_reference_that_is_no_model(
    capsys: pytest.CaptureFixture[str], stub_path: Path, tmp_path: Path
) -> None:
    text = tmp_path / "t.txt"
    text.write_text("some words to read " * 20)
    told = here(capsys, "eval", stub_path, "--text", text, "--window", 64, "--against", tmp_path)
    assert told == (1, "", block("no config.json", tmp_path, "pass a directory saved by `save_pretrained`"))
    text.write_bytes(np.arange(256, dtype=np.uint8).tobytes())
    told = here(capsys, "eval", stub_path, "--text", text, "--window", 64)
    assert told == (1, "", block("it is not UTF-8 text: byte 0x80 at 128", text, "pass a text"))


def test_a_workload_that_never_ends(
    capsys: pytest.CaptureFixture[str], stub_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hint = "reduce --batch, --prefill, --decode or --repeats"
    call = ("bench", stub_path, "--prefill", 32, "--decode", 4, "--threads", 1)
    code, _, err = here(capsys, *call, "--repeats", 10**9)
    assert (
        code == 1
        and err.startswith("error: the workload would take some ")
        and err.endswith(f"hours\n  where: bench\n  help: {hint}\n")
    )
    monkeypatch.setattr("tilewright.runtime.benchmark.available_bytes", lambda: 10**6)
    code, _, err = here(capsys, *call, "--batch", 100000)
    assert code == 1 and err.startswith("error: keys and values of 100,000 sequences take ")
    assert err.endswith(f" GB, 0 GB are free\n  where: bench\n  help: {hint}\n")
