"""A compiled LoRA adapter: its logits equal those of eager PyTorch on independently merged weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tilewright as tw
from tests.compiler import families
from tilewright.runtime.errors import RuntimeFault
from tilewright.runtime.model import Model

RANK, ALPHA = 4, 8
NAMES = (
    "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.o_proj",
    "model.layers.1.mlp.gate_proj", "model.layers.1.mlp.down_proj",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base model, an adapter of some of its weights, and the base with the adapter merged by hand."""
    root = tmp_path_factory.mktemp("lora")
    base, merged = (
        families.write_model(root / "base", "llama"),
        families.write_model(root / "merged", "llama"),
    )
    weights = load_file(merged / "model.safetensors")
    g, factors = torch.Generator().manual_seed(1), {}
    for name in NAMES:
        n, k = weights[f"{name}.weight"].shape
        a, b = torch.randn(RANK, k, generator=g) * 0.3, torch.randn(n, RANK, generator=g) * 0.3
        factors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        weights[f"{name}.weight"] += ALPHA / RANK * (b @ a)
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    adapter = root / "adapter"
    adapter.mkdir()
    save_file(factors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA})
    )
    return {"base": base, "merged": merged, "adapter": adapter}


def run(model: Model, ids: np.ndarray) -> np.ndarray:
    out = model(ids)
    assert isinstance(out, np.ndarray)
    return out


@pytest.mark.parametrize("recipe", ["f32", pytest.param("int8", marks=pytest.mark.slow)])
def test_an_adapter_compiles_to_the_merged_model(
    folders: dict[str, Path], recipe: str, tmp_path: Path
) -> None:
    ids = families.prompt(96)
    tw.compile(folders["base"], adapter=folders["adapter"], recipe=recipe).save(tmp_path / "m.tw")
    got = run(tw.load(tmp_path / "m.tw"), ids)
    if recipe == "f32":
        assert families.distance(got, families.eager_logits(folders["merged"], ids)) <= 1e-4
        assert families.distance(got, families.eager_logits(folders["base"], ids)) >= 1e-2
    else:  # narrowed after merging: the same bits as the merged model compiled
        want = run(tw.compile(folders["merged"], recipe=recipe).load(), ids)
        np.testing.assert_array_equal(got, want)


def test_a_rebuild_needs_no_adapter(folders: dict[str, Path], tmp_path: Path) -> None:
    """Weights are merged when the artifact is written: nothing of the adapter is requested later."""
    tw.compile(folders["base"], adapter=folders["adapter"], recipe="f32").save(tmp_path / "m.tw")
    ids = families.prompt(96)
    want = run(tw.load(tmp_path / "m.tw"), ids)
    try:
        again = tw.load(tmp_path / "m.tw", rebuild=True)
    except RuntimeFault as e:
        pytest.fail(f"{e}")
    np.testing.assert_array_equal(run(again, ids), want)
