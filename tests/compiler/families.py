"""Tiny random models of every family the project promises, made so that comparisons can fail.

Weights are scaled up, norms and biases are random, windows are a third of the prompt: leaving out any
attribute moves the logits. `write_model` saves one as a directory; `eager_logits` is what transformers' own
float32 code says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tilewright.ir.graph.core import Graph, Module
from tilewright.ir.interp.graph import run_graph
from tilewright.ir.weights.sources import WeightStore

#: tokens of a prompt; windows are at most a third of it
PROMPT, WINDOW = 24, 7
_BASE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
_LAYERS = ["sliding_attention", "full_attention"]


def _rotary(kind: str, **more: Any) -> dict[str, Any]:
    return {**_BASE, "rope_parameters": {"rope_type": kind, "rope_theta": 100.0, **more}}


_LONG = {"short_factor": [1.0 + 0.1 * n for n in range(8)], "long_factor": [2.0 + n for n in range(8)]}
_MOE = {"num_experts_per_tok": 2}

#: name -> (model type, fields of its config)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _BASE),
    "llama_linear": ("llama", _rotary("linear", factor=4.0)),
    "llama_dynamic": ("llama", _rotary("dynamic", factor=2.0)),
    "llama_yarn": ("llama", _rotary("yarn", factor=4.0, original_max_position_embeddings=32)),
    "llama_longrope": ("llama", _rotary("longrope", factor=4.0, original_max_position_embeddings=32,
    **_LONG)),
    "llama_llama3": (
        "llama",
        _rotary("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16),
    ),
    "llama_tied": ("llama", {**_BASE, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**_BASE, "sliding_window": WINDOW}),
    "qwen2": ("qwen2", _BASE),
    "qwen3": ("qwen3", _BASE),
    "gemma2": (
        "gemma2",
        {**_BASE, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 3.0, "layer_types": _LAYERS},
    ),
    "gemma3_text": (
        "gemma3_text", {**_BASE, "sliding_window": WINDOW, "query_pre_attn_scalar": 8,
        "layer_types": _LAYERS},
    ),
    "phi3": ("phi3", _BASE),
    "gpt2": (
        "gpt2",
        {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1,
        "eos_token_id": 2},
    ),
    "gpt_neox": ("gpt_neox", {k: v for k,
    v in _BASE.items() if k not in ("head_dim", "num_key_value_heads")}),
    "opt": (
        "opt",
        {"vocab_size": 96, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 128, "word_embed_proj_dim": 48, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": 0},
    ),
    "bloom": ("bloom", {"vocab_size": 96, "hidden_size": 64, "n_layer": 2, "n_head": 4, "eos_token_id": 2}),
    "gpt_oss": (
        "gpt_oss",
        {**_BASE, **_MOE, "num_local_experts": 4, "sliding_window": WINDOW, "layer_types": _LAYERS,
         "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
         "original_max_position_embeddings": 32}},
    ),
    "mixtral": ("mixtral", {**_BASE, **_MOE, "num_local_experts": 4, "sliding_window": WINDOW}),
    "qwen3_moe": (
        "qwen3_moe",
        {**_BASE, **_MOE, "num_experts": 4, "moe_intermediate_size": 48, "decoder_sparse_step": 1,
        "norm_topk_prob": True},
    ),
    "falcon": (
        "falcon",
        {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 128,
         "bos_token_id": 1, "eos_token_id": 2},
    ),
    "gptj": (
        "gptj",
        {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 8,
        "bos_token_id": 1,
         "eos_token_id": 2},
    ),
    "codegen": (
        "codegen",
        {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 8,
        "bos_token_id": 1,
         "eos_token_id": 2},
    ),
    "mpt": (
        "mpt",
        {"vocab_size": 96, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, "bos_token_id": 1,
        "eos_token_id": 2},
    ),
    "phimoe": ("phimoe", {**_BASE, **_MOE, "num_local_experts": 4, "sliding_window": WINDOW}),
    "diffllama": ("diffllama", _BASE),
    "deepseek_v3": (
        "deepseek_v3",
        {**{k: v for k, v in _BASE.items() if k != "head_dim"}, **_MOE, "num_key_value_heads": 4,
        "n_routed_experts": 8,
         "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "moe_intermediate_size": 48,
         "first_k_dense_replace": 1,
         "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
         "v_head_dim": 16},
    ),
    "xglm": (
        "xglm",
        {"vocab_size": 96, "d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96,
        "max_position_embeddings": 128,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "gpt_neo": (
        "gpt_neo",
        {"vocab_size": 96, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "intermediate_size": 96,
        "window_size": WINDOW,
         "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 128, "bos_token_id": 1,
         "eos_token_id": 2},
    ),
}  # fmt: skip


def make_model(model_type: str, fields: dict[str, Any], seed: int = 0) -> Any:
    """A transformers model in float32 whose every parameter matters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **fields), attn_implementation="eager"
    )
    with torch.no_grad():
        for p in model.parameters():
            spread = 0.3 if p.ndim == 1 else min(1.5 / p.shape[-1] ** 0.5, 0.3)
            p.add_(torch.randn_like(p) * spread)
    return model.float().eval()


def write_model(directory: Path, name: str, seed: int = 0) -> Path:
    """Save the family's model (once); the directory."""
    if not (directory / "config.json").exists():
        make_model(*FAMILIES[name], seed).save_pretrained(directory)
    return directory


def prompt(vocab: int, batch: int = 2, length: int = PROMPT) -> NDArray[np.int32]:
    """Token ids that avoid the special ones."""
    return np.random.default_rng(5).integers(3, vocab, (batch, length)).astype(np.int32)


def eager_logits(directory: Path, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """What transformers computes in float32 with its eager attention."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(ids).long(), use_cache=False).logits
    return np.asarray(out.float().numpy(), np.float32)


def eager_without_norms(directory: Path, ids: NDArray[np.int32]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """What eager logits would be without each kind of norm: the norms of one name, in all layers, pass their
    input on."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    norms: dict[str, list[Any]] = {}
    for path, part in model.named_modules():
        if type(part).__name__.endswith("Norm"):
            norms.setdefault(path.rpartition(".")[2], []).append(part)
    for name, parts in norms.items():
        hooks = [p.register_forward_hook(lambda _, given, __: given[0]) for p in parts]
        with torch.no_grad():
            yield name, model(torch.from_numpy(ids).long()).logits.numpy()
        for h in hooks:
            h.remove()


def graph_logits(module: Module, store: WeightStore, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """What the captured graph says, on the interpreter."""
    pos = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape).copy()
    return np.asarray(run_graph(module, "forward", {"ids": ids, "pos": pos}, store)["logits"], np.float32)


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Largest difference as a share of b's range."""
    return float(np.abs(a - b).max() / (b.max() - b.min()))


# ------------------------------------------------------------------ leaving one thing out
_PLAIN = {"window": 0, "softcap": 0.0, "causal": False, "scale": 0.5}


def without(module: Module, what: str) -> Module | None:
    """The module with an attribute of its attention neutral, its sinks or positions gone (None: it has
    none)."""
    g = module.graph("forward")
    if what == "sinks":
        return _rebuilt(
            module, g, [_no_sinks(op) if op.name == "attend" and op.attr("sinks") else op for op in g.ops]
        )
    if what == "positions":
        uses = [op for op in g.ops if "%pos" in op.operands]
        return module if not uses else _rebuilt(module, g, [_no_positions(op) for op in g.ops])
    ops = [op.with_attrs(**{what: _PLAIN[what]}) if op.name == "attend" else op for op in g.ops]
    return _rebuilt(module, g, ops)


def _rebuilt(module: Module, g: Graph, ops: list[Any]) -> Module | None:
    return None if tuple(ops) == g.ops else module.replace_graph(replace(g, ops=tuple(ops)))


def _no_sinks(op: Any) -> Any:
    return replace(op, operands=(*op.operands[:3], *op.operands[4:])).with_attrs(sinks=False)


def _no_positions(op: Any) -> Any:
    """Every token at the position its own id says: wrong almost everywhere."""
    return replace(op, operands=tuple("%ids" if o == "%pos" else o for o in op.operands))
