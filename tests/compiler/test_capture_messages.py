"""Messages of capture for unusable directories, and a plain module with a dynamic batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.compiler import families
from tilewright.capture import capture_directory, capture_module
from tilewright.ir.errors import RefusedError, UnsupportedError
from tilewright.ir.interp.graph import run_graph
from tilewright.ir.weights.sources import WeightStore

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48,
    "vocab_size": 40,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip


def config(directory: Path, **fields: object) -> Path:
    (directory / "config.json").write_text(json.dumps({**LLAMA, **fields}))
    return directory


def test_no_directory_no_config_no_weights(tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as e:
        capture_directory(tmp_path / "absent" / "model")
    assert str(e.value) == (
        f"refused: no checkpoint directory '{tmp_path}/absent/model'\n"
        f"  help: check the path: '{tmp_path}' exists, '{tmp_path}/absent' does not"
    )
    (tmp_path / "tiny-llama").mkdir()
    with pytest.raises(RefusedError, match=f"did you mean '{tmp_path}/tiny-llama'"):
        capture_directory(tmp_path / "tiny-lama")
    with pytest.raises(RefusedError, match=r"pass a folder with config.json and .* or a hub id: owner/model"):
        capture_directory("zzz-model")
    with pytest.raises(
        RefusedError, match=r"expected a checkpoint directory, got a file\n  help: pass a folder with config"
    ):
        capture_directory(__file__)
    with pytest.raises(RefusedError, match=r"no config\.json"):
        capture_directory(tmp_path)
    with pytest.raises(RefusedError, match=r"no weights: expected model\.safetensors"):
        capture_directory(config(tmp_path))


def test_libraries_below_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers has words for odd configs, PyTorch for its own code: neither reaches the terminal, our
    errors do."""
    monkeypatch.setenv(
        "XDG_CACHE_HOME", str(tmp_path / "cache")
    )  # captures are kept: none from an earlier run
    directory = families.write_model(tmp_path / "llama", "llama")
    plain = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(plain | {"bos_token_id": 9999}))
    command = [sys.executable, "-c", "from tilewright.cli.app import main; main()"]
    done = subprocess.run(
        [*command, "dump", directory, "--stage", "captured"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        0,
        "capture the model …\nrun the passes …\n",
    ) and "graph @forward" in done.stdout
    (directory / "config.json").write_text(json.dumps(plain | {"bos_token_id": 9998}))
    told = subprocess.run(
        [*command, "--debug", "dump", directory, "--stage", "captured"], capture_output=True, text=True
    )
    assert "bos_token_id" in told.stderr, "the config is not odd enough: this shows nothing"
    (directory / "model.safetensors").unlink()
    done = subprocess.run(
        [*command, "compile", directory, "-o", tmp_path / "m.tw"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "error: no weights: expected model.safetensors" in done.stderr


def test_models_that_are_not_causal(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="T5ForConditionalGeneration: models that generate text from"):
        capture_directory(config(tmp_path, model_type="t5", architectures=["T5ForConditionalGeneration"]))
    with pytest.raises(UnsupportedError, match="'nosuch' is unknown to transformers"):
        capture_directory(config(tmp_path, model_type="nosuch"))
    with pytest.raises(UnsupportedError, match="checkpoint quantized with gptq"):
        capture_directory(config(tmp_path, quantization_config={"quant_method": "gptq"}))


def test_a_plain_module_with_dynamic_batch() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.LayerNorm(16), torch.nn.Linear(16, 3)
    ).eval()
    module, memory = capture_module(net, (torch.randn(4, 8),), ({0: torch.export.Dim("N", min=1, max=64)},))
    (name,) = (v.name for v in module.graph("forward").inputs)
    for n in (1, 7):
        x = torch.randn(n, 8)
        (y,) = run_graph(module, "forward", {name: x.numpy()}, WeightStore(memory=memory)).values()
        assert np.abs(np.asarray(y, np.float32) - net(x).detach().numpy()).max() <= 1e-5
