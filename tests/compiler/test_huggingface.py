"""Checkpoints of every form: shards, half precision, ties, merged experts, LoRA; errors of broken ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.compiler import families
from tilewright.capture import capture_directory
from tilewright.capture.attention import MaskSpec, describe_mask
from tilewright.capture.huggingface import attention_layers
from tilewright.ir.errors import RefusedError, UnsupportedError
from tilewright.ir.graph.core import Apply, Module, Stored
from tilewright.ir.weights.sources import WeightStore

IDS = families.prompt(96)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def logits(directory: Path, adapter: Path | None = None) -> tuple[Module, Any]:
    module = capture_directory(directory, adapter=adapter)
    return module, families.graph_logits(module, WeightStore(directory, adapter=adapter), IDS)


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a saved model."""
    tensors = load_file(directory / SINGLE)
    change(tensors)
    save_file(tensors, directory / SINGLE, metadata={"format": "pt"})


# ------------------------------------------------------------------ forms of a checkpoint
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_as_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    model = families.make_model(*families.FAMILIES["llama"]).to(dtype)
    model.save_pretrained(tmp_path)
    module, ours = logits(tmp_path)
    assert families.distance(ours, families.eager_logits(tmp_path, IDS)) <= 1e-4
    w = module.weight_map()[QUERY]
    assert (w.type.dtype, str(w.type.encoding)) == (
        "f32",
        {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype],
    )
    assert w.source == Stored(SINGLE, QUERY)
    assert dict(module.meta)["dtype"] == str(dtype).removeprefix("torch.")


def test_shards(tmp_path: Path) -> None:
    model = families.make_model(*families.FAMILIES["llama"])
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    _, ours = logits(tmp_path)
    assert families.distance(ours, families.eager_logits(tmp_path, IDS)) <= 1e-4
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(RefusedError, match=f"shard '{lost.name}' is missing; it should contain"):
        capture_directory(tmp_path)


def test_tied_weights_are_one(tmp_path: Path) -> None:
    base = families.write_model(tmp_path / "base", "llama_tied")
    module, _ = logits(base)
    assert "lm_head.weight" not in module.weight_map() and "lm_head.weight" not in load_file(base / SINGLE)
    adapter = adapter_of(tmp_path / "adapter", {"lm_head": (96, 64)})
    changed, _ = logits(base, adapter)
    weights = changed.weight_map()
    assert isinstance(weights["lm_head.weight"].source, Apply) and isinstance(
        weights["model.embed_tokens.weight"].source, Stored
    )


def test_experts_are_merged_lazily(tmp_path: Path) -> None:
    module = capture_directory(families.write_model(tmp_path, "mixtral"))
    source = module.weight_map()["model.layers.0.mlp.experts.gate_up_proj"].source
    assert (
        isinstance(source, Apply)
        and source.fn == "concat"
        and [a.fn for a in source.args] == ["stack", "stack"]
    )  # type: ignore[union-attr]
    assert module.weight_map()["model.layers.0.mlp.experts.gate_up_proj"].type.shape == (4, 192, 64)


def test_tensors_without_a_place_are_left_out(tmp_path: Path) -> None:
    families.write_model(tmp_path, "llama")
    rewrite(tmp_path, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    logits(tmp_path)


# ------------------------------------------------------------------ checkpoints that do not fit
def test_missing_tensor(tmp_path: Path) -> None:
    families.write_model(tmp_path, "llama")
    rewrite(tmp_path, lambda t: t.__delitem__(QUERY))
    with pytest.raises(RefusedError) as e:
        capture_directory(tmp_path)
    assert str(e.value) == (
        f"{tmp_path}: refused: no tensor for the parameter '{QUERY}' [64, 64]\n"
        "  help: the checkpoint does not match its config.json"
    )


def test_misshaped_tensor(tmp_path: Path) -> None:
    families.write_model(tmp_path, "llama")
    rewrite(tmp_path, lambda t: t.update({QUERY: torch.zeros(32, 64)}))
    with pytest.raises(RefusedError) as e:
        capture_directory(tmp_path)
    assert str(e.value) == (
        f"{tmp_path}/{SINGLE}: {QUERY}: refused: parameter '{QUERY}' has shape [32, 64], the model expects "
        "[64, 64]\n"
        "  help: the checkpoint does not match its config.json"
    )


def test_tensor_of_an_unknown_type(tmp_path: Path) -> None:
    families.write_model(tmp_path, "llama")
    rewrite(tmp_path, lambda t: t.update({QUERY: t[QUERY].to(torch.float8_e4m3fn)}))
    with pytest.raises(UnsupportedError, match=f"parameter '{QUERY}' is stored as F8_E4M3"):
        capture_directory(tmp_path)


def test_damaged_file(tmp_path: Path) -> None:
    families.write_model(tmp_path, "llama")
    data = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(data[: len(data) // 2])
    with pytest.raises(
        RefusedError,
        match=rf"{tmp_path}/{SINGLE}: refused: tensor .*\n  help: the file is damaged or truncated",
    ):
        capture_directory(tmp_path)
    (tmp_path / SINGLE).unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(RefusedError, match=r"pytorch_model\.bin is a pickle file, which is never opened"):
        capture_directory(tmp_path)


def test_index_that_leads_outside(tmp_path: Path) -> None:
    families.write_model(tmp_path, "llama")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {QUERY: "../model.safetensors"}}))
    with pytest.raises(RefusedError, match="is outside the directory"):
        capture_directory(tmp_path)
    (tmp_path / INDEX).write_text("[]")
    with pytest.raises(RefusedError, match="not an index of shards"):
        capture_directory(tmp_path)


# ------------------------------------------------------------------ LoRA
def adapter_of(directory: Path, modules: dict[str, tuple[int, int]], seed: int = 1, **config: Any) -> Path:
    """A PEFT directory with random factors of rank 4 for modules of the shapes [out, in]."""
    directory.mkdir(parents=True, exist_ok=True)
    g, tensors = torch.Generator().manual_seed(seed), {}
    for name, (n, k) in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(4, k, generator=g) * 0.3
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(n, 4, generator=g) * 0.3
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config})
    )
    return directory


@pytest.mark.parametrize(("rs", "scale"), [(False, 2.0), (True, 4.0)])
def test_lora_is_merged(tmp_path: Path, rs: bool, scale: float) -> None:
    base = families.write_model(tmp_path / "base", "llama")
    modules = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.1.mlp.down_proj": (64, 96)}
    adapter = adapter_of(tmp_path / "adapter", modules, use_rslora=rs)
    factors = load_file(adapter / "adapter_model.safetensors")
    merged = tmp_path / "merged"
    families.write_model(merged, "llama")

    def add(t: dict[str, torch.Tensor]) -> None:
        for name in modules:
            a, b = (factors[f"base_model.model.{name}.lora_{s}.weight"] for s in "AB")
            t[f"{name}.weight"] += scale * (b @ a)

    rewrite(merged, add)
    module, ours = logits(base, adapter)
    assert families.distance(ours, families.eager_logits(merged, IDS)) <= 1e-4
    assert families.distance(ours, families.eager_logits(base, IDS)) >= 1e-2
    source = module.weight_map()["model.layers.0.self_attn.q_proj.weight"].source
    assert isinstance(source, Apply) and source.fn == "lora"


def test_lora_on_transposed_weights(tmp_path: Path) -> None:
    base = families.write_model(tmp_path / "base", "gpt2")
    adapter = adapter_of(
        tmp_path / "adapter", {"transformer.h.0.attn.c_attn": (192, 64)}, fan_in_fan_out=True
    )
    factors = load_file(adapter / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.transformer.h.0.attn.c_attn.lora_{s}.weight"] for s in "AB")
    merged = families.write_model(tmp_path / "merged", "gpt2")
    rewrite(
        merged,
        lambda t: t.update(
            {k: x + 2.0 * (b @ a).T for k, x in t.items() if k.endswith("h.0.attn.c_attn.weight")}
        ),
    )
    assert families.distance(logits(base, adapter)[1], families.eager_logits(merged, IDS)) <= 1e-4


def test_lora_that_does_not_fit(tmp_path: Path) -> None:
    base = families.write_model(tmp_path / "base", "llama")
    adapter = adapter_of(tmp_path / "a", {"model.layers.7.self_attn.q_proj": (64, 64)})
    with pytest.raises(
        RefusedError,
        match=r"changes 'model\.layers\.7\.self_attn\.q_proj\.weight' and 0 more, which the model",
    ):
        capture_directory(base, adapter=adapter)
    adapter = adapter_of(tmp_path / "b", {"model.layers.0.self_attn.q_proj": (64, 32)})
    with pytest.raises(
        RefusedError, match=r"changes '.*q_proj\.weight' as \[64, 32\], the model has \[64, 64\]"
    ):
        capture_directory(base, adapter=adapter)
    adapter = adapter_of(tmp_path / "c", {"model.layers.0.self_attn.q_proj": (64, 64)}, use_dora=True)
    with pytest.raises(UnsupportedError, match=r"other than plain LoRA \(use_dora\)"):
        capture_directory(base, adapter=adapter)


# ------------------------------------------------------------------ masks, rotary limits
def test_masks_are_described_or_declined() -> None:
    from transformers import masking_utils as m

    assert describe_mask(m.causal_mask_function) == MaskSpec(True)
    assert describe_mask(m.sliding_window_causal_mask_function(5)) == MaskSpec(True, 5)
    assert describe_mask(m.bidirectional_mask_function) == MaskSpec(False)
    assert describe_mask(m.chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.int64))) is None
    assert describe_mask(m.sliding_window_bidirectional_mask_function(5)) is None


@pytest.mark.parametrize(
    ("name", "context"), [("llama", 128), ("llama_dynamic", 128), ("llama_longrope", 128)]
)
def test_context_is_what_the_model_was_made_for(tmp_path: Path, name: str, context: int) -> None:
    module = capture_directory(families.write_model(tmp_path, name))
    assert dict(module.meta)["context"] == context
    assert dict(module.symbols)["S"].hi == context


def test_layers_with_attention_are_counted() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("qwen3", **families.FAMILIES["qwen3"][1])
    assert attention_layers(config) == 2
    mixed = copy.deepcopy(config)
    mixed.layer_types = ["linear_attention", "full_attention"]
    assert attention_layers(mixed) == 1


def test_positions_are_inputs(tmp_path: Path) -> None:
    """Shifting every position leaves a rotary model's logits (they depend on differences alone)."""
    module = capture_directory(families.write_model(tmp_path, "llama"))
    store = WeightStore(tmp_path)
    from tilewright.ir.interp.graph import run_graph

    pos = np.broadcast_to(np.arange(IDS.shape[1], dtype=np.int32), IDS.shape)
    at, shifted = (
        run_graph(module, "forward", {"ids": IDS, "pos": pos + n}, store)["logits"] for n in (0, 5)
    )
    assert families.distance(shifted, at) <= 1e-4
