"""The error table of layers against PyTorch's own activations and the encodings' own rounding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.compiler.families import write_model
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.runtime.artifact import open_artifact
from tilewright.tools.layer_errors import layer_errors

IDS = np.random.default_rng(3).integers(3, 96, (3, 48))
#: every linear of a layer after merging
LINEARS = ("self_attn.q_proj_k_proj_v_proj", "self_attn.o_proj", "mlp.gate_proj_up_proj", "mlp.down_proj")


def expected(folder: Path, encoding: str) -> float:
    """The relative error of one down projection, from PyTorch's own inputs to it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layer, seen = model.model.layers[1].mlp.down_proj, []
    layer.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.inference_mode():
        model(torch.from_numpy(IDS))
        x = seen[0].reshape(-1, seen[0].shape[-1]).numpy().astype(np.float64)
    w, e = layer.weight.detach().numpy(), parse_encoding(encoding)
    lost = x @ (e.decode(e.encode(w)) - w).T
    return float(np.linalg.norm(lost) / np.linalg.norm(x @ w.T))


@pytest.mark.parametrize(
    "encoding",
    ["int4(group=32)", *(pytest.param(e, marks=pytest.mark.slow) for e in ("int8(channel)", "bf16"))],
)
def test_errors_are_those_of_the_outputs(encoding: str, tmp_path: Path) -> None:
    write_model(tmp_path / "llama", "llama")
    out = tmp_path / "m.tw"
    tw.compile(tmp_path / "llama", weights=encoding).save(out)
    rows = layer_errors(open_artifact(out), tmp_path / "llama", list(IDS))
    assert [r.weight for r in rows] == [
        *(f"model.layers.{n}.{w}.weight" for n in range(2) for w in LINEARS),
        "lm_head.weight",
    ]
    found = next(r for r in rows if r.weight == "model.layers.1.mlp.down_proj.weight")
    assert found.error == pytest.approx(expected(tmp_path / "llama", encoding), rel=1e-3)
    assert found.bits == pytest.approx(
        {"int4(group=32)": 4.5, "int8(channel)": 8 + 32 / 96, "bf16": 16}[encoding]
    )


def test_rescaled_weights_are_told(tmp_path: Path) -> None:
    write_model(tmp_path / "llama", "llama")
    out = tmp_path / "m.tw"
    given = {"calibrate": [IDS.reshape(-1)], "samples": 3, "sample_tokens": 48}
    tw.compile(tmp_path / "llama", weights="awq(int4(group=32))", **given).save(out)  # type: ignore[arg-type]
    rows = layer_errors(open_artifact(out), tmp_path / "llama", list(IDS))
    assert all(r.error is None for r in rows if "q_proj" in r.weight)


@pytest.mark.slow
def test_eval_prints_the_table(
    tiny_llama: Path, repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tilewright.cli.app import run

    out, text = tmp_path / "m.tw", repo / "docs" / "ir.md"
    tw.compile(tiny_llama, weights="int4(group=64)").save(out)
    call = [
        "eval",
        str(out),
        "--text",
        str(text),
        "--window",
        "128",
        "--windows",
        "2",
        "--against",
        str(tiny_llama),
    ]
    assert run([*call, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["layers"]
    assert len(rows) == 25 and all(0.01 < r["error"] < 0.3 for r in rows)
    assert run(call) == 0
    said = capsys.readouterr().out
    assert "error of its output" in said and "model.layers.5.mlp.down_proj.weight" in said
