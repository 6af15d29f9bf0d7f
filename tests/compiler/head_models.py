"""Tiny random encoders and vision models in folders as `save_pretrained` writes them, with their tokenizers.

Weights are moved away from their initial values, so that every one of them matters.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    "the", "a", "cat", "dog", "bird", "sat", "ran", "on", "under", "mat", "house", "in", "paris", "london",
    "anna", "bob", "lives", "works", "at", "acme", "bank", "blue", "red", "small", "river", "city", "of",
    "and", "is", "was", "good", "bad", "film", "not", "what", "where", "who", "##s", "##ing",
)  # fmt: skip
SIZES: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64,
}  # fmt: skip
#: how many tokens the models take
LONGEST = 40
IMAGE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def tokenizer() -> hf.PreTrainedTokenizerFast:
    """Words, with two that continue a word; pairs get token types 0 and 1."""
    vocabulary = {w: n for n, w in enumerate(dict.fromkeys((*SPECIAL, *WORDS)))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(s, vocabulary[s]) for s in ("[CLS]", "[SEP]")],
    )  # fmt: skip
    made.decoder = decoders.WordPiece(prefix="##")
    names = {f"{s[1:-1].lower()}_token": s for s in SPECIAL}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=LONGEST,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names,
    )  # fmt: skip


def shaken(model: Any) -> Any:
    """Deterministic weights far from where they begin; running variances stay positive."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.15)
        for name, b in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                b.copy_(torch.rand_like(b) + 0.5)
    return model.eval()


def saved(folder: Path, model: Any, text: bool = False, **files: Any) -> Path:
    """The model in its folder; `files`: JSON by name without its ending."""
    model.save_pretrained(folder)
    if text:
        tokenizer().save_pretrained(folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def config(made: Callable[..., Any], **more: Any) -> Any:
    """A config of these sizes for texts."""
    return made(max_position_embeddings=LONGEST, pad_token_id=0, **SIZES, **more)


def labels(*names: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


# ------------------------------------------------------------------ texts
def _distilbert() -> Any:
    return hf.DistilBertConfig(
        vocab_size=48, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=LONGEST,
        pad_token_id=0, **labels(*ENTITIES),
    )  # fmt: skip


def _deberta() -> Any:
    return config(
        hf.DebertaV2Config, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8,
        **labels(*ENTITIES),
    )  # fmt: skip


ENTITIES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
#: model and config by name; a text model's folder has a tokenizer
TEXTS: dict[str, Callable[[], Any]] = {
    "bert": lambda: hf.BertForSequenceClassification(
        config(hf.BertConfig, **labels("bad", "good", "mixed"))
    ),
    "electra": lambda: hf.ElectraForSequenceClassification(
        config(hf.ElectraConfig, embedding_size=16, problem_type="multi_label_classification",
               **labels("red", "blue"))
    ),
    "roberta": lambda: hf.RobertaForMaskedLM(config(hf.RobertaConfig)),
    "albert": lambda: hf.AlbertForMaskedLM(config(hf.AlbertConfig, embedding_size=16)),
    "distilbert": lambda: hf.DistilBertForTokenClassification(_distilbert()),
    "deberta": lambda: hf.DebertaV2ForTokenClassification(_deberta()),
    "bert-qa": lambda: hf.BertForQuestionAnswering(config(hf.BertConfig)),
    "mobilebert": lambda: hf.MobileBertForSequenceClassification(config(hf.MobileBertConfig)),
    "modernbert": lambda: hf.ModernBertForSequenceClassification(config(hf.ModernBertConfig)),
    "llama": lambda: hf.LlamaForSequenceClassification(config(hf.LlamaConfig)),
    "t5-encoder": lambda: hf.T5EncoderModel(
        hf.T5Config(vocab_size=48, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    ),
    "bert-encoder": lambda: hf.BertModel(config(hf.BertConfig), add_pooling_layer=False),
}  # fmt: skip


def text_model(folder: Path, name: str) -> Path:
    """One of TEXTS, saved."""
    return saved(folder, shaken(TEXTS[name]()), text=True)


#: names of modules and options of the pooling of sentence embedders
EMBEDDERS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "mean": (["Transformer", "Pooling", "Normalize"], {"pooling_mode_mean_tokens": True}),
    "cls": (["Transformer", "Pooling", "Normalize"], {"pooling_mode_cls_token": True}),
    "max": (["Transformer", "Pooling"], {"pooling_mode": "max"}),
}


def embedder(folder: Path, name: str, made: Any = None) -> Path:
    """A sentence embedder as sentence-transformers saves it; it takes 24 tokens."""
    modules, pooling = EMBEDDERS[name]
    model = hf.MPNetModel(config(hf.MPNetConfig)) if made is None else made
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    listed = [
        {"idx": n, "name": str(n), "path": paths[m], "type": f"sentence_transformers.models.{m}"}
        for n, m in enumerate(modules)
    ]
    saved(folder, shaken(model), text=True, modules=listed, sentence_bert_config={"max_seq_length": 24})
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    return folder


# ------------------------------------------------------------------ images
def _resnet() -> Any:
    return hf.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], **labels("cat", "dog", "bird")
    )


def picture(height: int, width: int) -> Any:
    """An image of Pillow: some shapes in noise."""
    from PIL import Image

    rng = np.random.default_rng(height * width)
    rough = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.integers(-20, 20, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(rough) + noise, 0, 255).astype(np.uint8))


SQUARE = {"height": 32, "width": 32}
#: model, and what its preprocessor_config.json says
IMAGES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "vit": (
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**IMAGE, **labels("cat", "dog", "bird"))),
        {"image_processor_type": "ViTImageProcessor", "size": SQUARE},
    ),
    "deit": (
        lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**IMAGE, **labels("cat"))),
        {
            "image_processor_type": "DeiTImageProcessor",
            "size": {"height": 40, "width": 44},
            "crop_size": SQUARE,
        },
    ),
    "swin": (
        lambda: hf.SwinForImageClassification(
            hf.SwinConfig(
                image_size=32, patch_size=2, embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4
            )
        ),
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 3},
    ),
    "convnext": (
        lambda: hf.ConvNextForImageClassification(
            hf.ConvNextConfig(image_size=32, patch_size=4, hidden_sizes=[16, 32], depths=[1, 1], num_stages=2)
        ),
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.875},
    ),
    "resnet": (
        lambda: hf.ResNetForImageClassification(_resnet()),
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}},
    ),
    "mobilenet": (
        lambda: hf.MobileNetV2ForImageClassification(
            hf.MobileNetV2Config(image_size=32, depth_multiplier=0.35)
        ),
        {
            "image_processor_type": "MobileNetV2ImageProcessor",
            "size": {"shortest_edge": 40},
            "crop_size": SQUARE,
        },
    ),
    "beit": (
        lambda: hf.BeitForImageClassification(hf.BeitConfig(**IMAGE)),
        {"image_processor_type": "ViTImageProcessor", "size": SQUARE},
    ),
    "dinov2": (
        lambda: hf.Dinov2ForImageClassification(
            hf.Dinov2Config(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
            )
        ),
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 36}, "crop_size": SQUARE},
    ),
    "regnet": (
        lambda: hf.RegNetForImageClassification(
            hf.RegNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8)
        ),
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}},
    ),
    "segformer": (
        lambda: hf.SegformerForImageClassification(
            hf.SegformerConfig(
                num_encoder_blocks=2,
                depths=[1, 1],
                sr_ratios=[4, 2],
                hidden_sizes=[16, 32],
                patch_sizes=[7, 3],
                strides=[4, 2],
                num_attention_heads=[1, 2],
                mlp_ratios=[2, 2],
            )
        ),
        {"image_processor_type": "SegformerImageProcessor", "size": {"height": 224, "width": 224}},
    ),
    "vit-features": (
        lambda: hf.ViTModel(hf.ViTConfig(**IMAGE), add_pooling_layer=False),
        {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "do_normalize": False},
    ),
}


def image_model(folder: Path, name: str) -> Path:
    """One of IMAGES, saved."""
    made, prepare = IMAGES[name]
    return saved(folder, shaken(made()), preprocessor_config=prepare)


def clip(folder: Path) -> Path:
    """A model that compares texts and images."""
    text = {**SIZES, "max_position_embeddings": LONGEST, "pad_token_id": 0, "eos_token_id": 3}
    made = hf.CLIPConfig(text_config=text, vision_config=IMAGE, projection_dim=16)
    prepare = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 36},
        "crop_size": SQUARE,
    }
    return saved(folder, shaken(hf.CLIPModel(made)), text=True, preprocessor_config=prepare)
