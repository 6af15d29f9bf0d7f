"""Pipes where a command expects a file: each is named at once, and none is waited for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.compiler.calls import here

PIPE = "it is a pipe, not a regular file"
IR = "kernel @k(%x: f32[8], %y: f32[8]) { grid i in 1 by 1 store %y[0:8], %x[0:8] }"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def told(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    code, _, err = here(capsys, *args)
    assert code in (1, 2)
    return err


def test_texts(pipe: Path, capsys: pytest.CaptureFixture[str], stub_path: Path) -> None:
    for args in (["opt", pipe], ["exec", pipe], ["eval", stub_path, "--window", 50, "--text", pipe]):
        wanted = "a text" if args[0] == "eval" else "IR as `tilewright dump` prints it"
        assert told(capsys, *args) == f"error: {PIPE}\n  where: {pipe}\n  help: pass {wanted}\n"
    (pipe.parent / "k.tile").write_text(IR)
    array = Path(shutil.copy(pipe.parent / "k.tile", pipe.parent / "x.npy"))
    array.unlink()
    os.mkfifo(array)
    text = told(capsys, "exec", pipe.parent / "k.tile", "--target", "none", "--input", f"x={array}")
    assert text == f"error: {PIPE}\n  where: {array}\n  help: pass an .npy file of numbers\n"
    (pipe.parent / "bytes").write_bytes(b"kernel \xff")
    assert "it is not UTF-8 text: byte 0xff at 7" in told(capsys, "opt", pipe.parent / "bytes")


def test_what_compile_reads(pipe: Path, capsys: pytest.CaptureFixture[str], tiny_llama: Path) -> None:
    out = ["-o", pipe.parent / "m.tw"]
    assert PIPE in told(capsys, "compile", tiny_llama, *out, "--tuning", pipe)
    recipe = pipe.with_suffix(".toml")
    os.mkfifo(recipe)
    assert f"error: {PIPE}\n  where: {recipe}\n  help: pass a TOML file, or a preset: " in told(
        capsys, "compile", tiny_llama, *out, "--recipe", recipe
    )
    assert f"--plugin {pipe}: {PIPE}" in told(capsys, "opt", pipe, "--plugin", pipe)
    text = told(capsys, "compile", tiny_llama, *out, "--weights", "gptq(int4(group=32))", "--calibrate", pipe)
    assert text == (
        f"error: {PIPE}\n  where: {pipe}\n  help: pass a text, or token ids in an .npy or .safetensors file\n"
    )


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "generation_config.json", "tokenizer.json"]
)
def test_a_model_directory(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_llama: Path
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    text = told(capsys, "compile", folder, "-o", tmp_path / "m.tw")
    carried = name in ("generation_config.json", "tokenizer.json")
    hint = (
        "pass a checkpoint directory as `save_pretrained` writes it"
        if carried
        else "a checkpoint directory contains regular files only"
    )
    assert text == f"error: {PIPE}\n  where: {folder / name}\n  help: {hint}\n"
