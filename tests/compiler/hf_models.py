"""Tiny random models of transformers' families, called as their users call them: for `torch.compile`.

Each makes a model and its arguments; weights are moved away from their initial values, so that every one of
them matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as hf

Arguments = dict[str, Any]
Made = tuple[torch.nn.Module, Arguments]

_HEADS: dict[str, Any] = {"num_attention_heads": 4, "intermediate_size": 64}
_TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    **_HEADS,
    "max_position_embeddings": 64,
}
_DECODER: dict[str, Any] = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}
_IMAGE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    **_HEADS,
    "image_size": 32,
    "patch_size": 8,
}
_PAIR: dict[str, Any] = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip


def ids(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(3, 96, (batch, length))


def _mask(batch: int = 2, length: int = 12) -> torch.Tensor:
    """The last sequence is padded."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, 8:] = 0
    return mask


def _text() -> Arguments:
    return {"input_ids": ids(), "attention_mask": _mask()}


def _tokens() -> Arguments:
    return {"input_ids": ids(), "use_cache": False}


def _both(**more: Any) -> Arguments:
    return {**_text(), "decoder_input_ids": ids(2, 5), "use_cache": False, **more}


def _pixels(size: int = 32, batch: int = 2) -> Arguments:
    return {"pixel_values": torch.randn(batch, 3, size, size)}


def _clip() -> Made:
    text = {**_TEXT, "eos_token_id": 95}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=_IMAGE, projection_dim=16)), {
        **_text(),
        **_pixels(),
    }


def _detr() -> Made:
    backbone = hf.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], out_features=["stage2"]
    )
    sizes = {k: v for k, v in _PAIR.items() if k.startswith(("d_", "encoder", "decoder_a", "decoder_f"))}
    config = hf.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone,
        num_queries=5, **{**sizes, "encoder_layers": 1, "decoder_layers": 1},
    )  # fmt: skip
    return hf.DetrModel(config), _pixels(64)


def _llava() -> Made:
    vision = hf.CLIPVisionConfig(**{**_IMAGE, "image_size": 16})
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**_DECODER), vision_config=vision, image_token_index=95, image_token_id=95
    )
    words = torch.tensor([[3, 95, 95, 95, 95, 5, 6]])
    return hf.LlavaForConditionalGeneration(config), {
        "input_ids": words,
        **_pixels(16, 1),
        "use_cache": False,
    }


def _wav2vec2() -> Made:
    config = hf.Wav2Vec2Config(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, **_HEADS, conv_dim=(16, 16), conv_stride=(5, 2),
        conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    return hf.Wav2Vec2Model(config), {"input_values": torch.randn(2, 400)}


def _whisper() -> Made:
    config = hf.WhisperConfig(num_mel_bins=8, max_source_positions=20, max_target_positions=20, **_PAIR)
    return hf.WhisperModel(config), {
        "input_features": torch.randn(2, 8, 40), "decoder_input_ids": ids(2, 5), "use_cache": False
    }  # fmt: skip


def _t5() -> Made:
    config = hf.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return hf.T5Model(config), _both()


def _distilbert() -> Made:
    config = hf.DistilBertConfig(
        vocab_size=96, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64
    )
    return hf.DistilBertModel(config), _text()


def _deberta() -> Made:
    config = hf.DebertaV2Config(relative_attention=True, pos_att_type=["p2c", "c2p"], **_TEXT)
    return hf.DebertaV2Model(config), _text()


def _swin() -> Made:
    config = hf.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4
    )
    return hf.SwinModel(config), _pixels()


def _segformer() -> Made:
    config = hf.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[4, 2], hidden_sizes=[16, 32], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
    )  # fmt: skip
    return hf.SegformerModel(config), _pixels()


def _resnet() -> Made:
    return hf.ResNetModel(hf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2])), _pixels()


def _convnext() -> Made:
    return hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 2], num_stages=2)), _pixels()


def _yolos() -> Made:
    config = hf.YolosConfig(**{**_IMAGE, "image_size": [32, 32]}, num_detection_tokens=5)
    return hf.YolosModel(config), _pixels()


def _gemma3() -> Made:
    layers = ["sliding_attention", "full_attention"]
    config = hf.Gemma3TextConfig(sliding_window=4, layer_types=layers, **_DECODER)
    return hf.Gemma3ForCausalLM(config), _tokens()


def _gpt2() -> Made:
    config = hf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return hf.GPT2LMHeadModel(config), {**_text(), "use_cache": False}


def _mamba() -> Made:
    config = hf.MambaConfig(vocab_size=96, hidden_size=16, state_size=4, num_hidden_layers=2)
    return hf.MambaModel(config), _tokens()


def llama() -> Made:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_DECODER)), {**_text(), "use_cache": False}


MODELS: Mapping[str, Callable[[], Made]] = {
    "bert": lambda: (hf.BertModel(hf.BertConfig(**_TEXT)), _text()),
    "roberta": lambda: (hf.RobertaModel(hf.RobertaConfig(pad_token_id=1, **_TEXT)), _text()),
    "distilbert": _distilbert,
    "albert": lambda: (hf.AlbertModel(hf.AlbertConfig(embedding_size=16, **_TEXT)), _text()),
    "deberta": _deberta,
    "electra": lambda: (hf.ElectraModel(hf.ElectraConfig(embedding_size=16, **_TEXT)), _text()),
    "t5": _t5,
    "bart": lambda: (
        hf.BartModel(hf.BartConfig(max_position_embeddings=64, forced_eos_token_id=2, **_PAIR)),
        _both(),
    ),
    "whisper": _whisper,
    "wav2vec2": _wav2vec2,
    "vit": lambda: (hf.ViTModel(hf.ViTConfig(**_IMAGE)), _pixels()),
    "deit": lambda: (hf.DeiTModel(hf.DeiTConfig(**_IMAGE)), _pixels()),
    "swin": _swin,
    "convnext": _convnext,
    "resnet": _resnet,
    "segformer": _segformer,
    "detr": _detr,
    "yolos": _yolos,
    "clip": _clip,
    "llava": _llava,
    "llama": llama,
    "qwen3": lambda: (hf.Qwen3ForCausalLM(hf.Qwen3Config(**_DECODER)), _tokens()),
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "mamba": _mamba,
    "mixtral": lambda: (hf.MixtralForCausalLM(hf.MixtralConfig(num_local_experts=4, **_DECODER)), _tokens()),
}


def made(name: str) -> Made:
    """The model in evaluation mode, with weights that matter, and its arguments; equal in every call."""
    torch.manual_seed(0)
    model, arguments = MODELS[name]()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model.eval(), arguments
