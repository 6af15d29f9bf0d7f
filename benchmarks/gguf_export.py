"""A Llama checkpoint as a GGUF file, through llama.cpp's own `gguf` package.

In: a checkpoint directory with bf16 safetensors. Out: a file without vocabulary, enough to measure speed.
Rows of query and key weights stay in their order, which changes results and no speed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.encodings.gguf import GgufBlocks

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    if name in TOP:
        return TOP[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def write_gguf(folder: Path, path: Path, width: str) -> Path:
    """The file, made if it does not exist. `width`: BF16, Q8_0, Q4_0, Q3_K or Q2_K; norms stay F32."""
    if path.exists():
        return path
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), "llama", use_temp_file=True)
    _metadata(writer, config)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                values = tensors.get_tensor(name).float().numpy()
                kind = gguf.GGMLQuantizationType[width if values.ndim > 1 else "F32"]
                data = values if values.ndim == 1 else quantized(values, kind)
                writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.rename(path)


def quantized(values: NDArray[np.float32], kind: gguf.GGMLQuantizationType) -> NDArray[Any]:
    """Rows of blocks: the package's own where it has them, ours (the same format) where it only reads
    them."""
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        encoding = parse_encoding(kind.name.lower())
        assert isinstance(encoding, GgufBlocks)
        return encoding.to_blocks(encoding.encode(values))


def _metadata(writer: object, config: dict[str, int]) -> None:
    sizes = {
        "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "feed_forward_length": "intermediate_size", "head_count": "num_attention_heads",
        "head_count_kv": "num_key_value_heads",
        "rope_dimension_count": "head_dim", "vocab_size": "vocab_size", "layer_norm_rms_eps": "rms_norm_eps",
    }  # fmt: skip
    for ours, theirs in sizes.items():
        getattr(writer, f"add_{ours}")(config[theirs])
    writer.add_tokenizer_model("no_vocab")  # type: ignore[attr-defined]
