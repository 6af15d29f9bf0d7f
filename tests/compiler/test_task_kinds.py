"""Which task a checkpoint directory is for, and what is refused: read from JSON files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tilewright.ir.errors import RefusedError, UnsupportedError
from tilewright.tasks.kinds import kind_of
from tilewright.tasks.sentences import read_sentences

TEXT = {"vocab_size": 10}


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("architecture", "more", "task"),
    [
        ("BertForSequenceClassification", TEXT, "text-classification"),
        ("RobertaForTokenClassification", TEXT, "token-classification"),
        ("AlbertForMaskedLM", TEXT, "fill-mask"),
        ("ElectraForQuestionAnswering", TEXT, "question-answering"),
        ("BertModel", TEXT, "feature-extraction"),
        ("T5EncoderModel", {"is_encoder_decoder": True, **TEXT}, "feature-extraction"),
        ("ViTForImageClassification", {"num_channels": 3}, "image-classification"),
        ("DeiTForImageClassificationWithTeacher", {"num_channels": 3}, "image-classification"),
        ("ConvNextModel", {"num_channels": 3}, "image-feature-extraction"),
        ("CLIPModel", {}, "zero-shot-image-classification"),
        ("LlamaForCausalLM", TEXT, None),
        ("GPT2LMHeadModel", TEXT, None),
        ("Unknown", TEXT, None),
    ],
)  # fmt: skip
def test_kinds(tmp_path: Path, architecture: str, more: Any, task: str | None) -> None:
    found = kind_of(write(tmp_path, config={"architectures": [architecture], **more}))
    assert (found and found.task) == task


@pytest.mark.parametrize(
    ("architecture", "more", "message"),
    [
        ("T5ForConditionalGeneration", TEXT, "models that generate text from an encoder's states"),
        ("WhisperForConditionalGeneration", TEXT, "models that generate text from an encoder's states"),
        ("BartModel", {"is_encoder_decoder": True, **TEXT}, "models that generate text from an encoder's st"),
        ("SegformerForSemanticSegmentation", {}, "segmentation has no post-processing here"),
        ("DetrForObjectDetection", {"is_encoder_decoder": True}, "detection has no post-processing here"),
        ("SiglipModel", {"text_config": {}, "vision_config": {}}, "of the models that take texts and images"),
        ("Wav2Vec2ForCTC", TEXT, "speech has no preprocessing here"),
    ],
)  # fmt: skip
def test_kinds_that_are_refused(tmp_path: Path, architecture: str, more: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{architecture}: {message}"):
        kind_of(write(tmp_path, config={"architectures": [architecture], **more}))


def modules(*names: str, path: str = "1_Pooling") -> list[dict[str, str]]:
    return [
        {"type": f"sentence_transformers.models.{n}", "path": path if n == "Pooling" else ""} for n in names
    ]


MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


@pytest.mark.parametrize(
    ("listed", "pooling", "more", "kind", "message"),
    [
        (modules("Transformer", "Pooling", "Dense"), MEAN, {}, UnsupportedError,
         "a sentence embedder of Transformer, Pooling, Dense"),
        (modules("os.system"), MEAN, {}, UnsupportedError, "a sentence embedder of system"),
        (modules("Transformer", "Pooling", path="../x"), MEAN, {}, RefusedError, "is outside the directory"),
        (modules("Transformer", "Pooling", path="2_Other"), MEAN, {}, RefusedError, "no config of the pool"),
        (modules("Transformer", "Pooling"), {"pooling_mode_lasttoken": True}, {}, UnsupportedError,
         "pooling by pooling_mode_lasttoken"),
        (modules("Transformer", "Pooling"), {**MEAN, "pooling_mode_cls_token": True}, {}, UnsupportedError,
         "pooling by mean and cls"),
        (modules("Transformer", "Pooling"), MEAN, {"do_lower_case": True}, UnsupportedError, "it lowers"),
        (modules("Transformer", "Pooling"), MEAN, {"max_seq_length": 0}, RefusedError, "max_seq_length: exp"),
        ("[", MEAN, {}, RefusedError, "cannot read it as JSON"),
        ({}, MEAN, {}, RefusedError, "expected a list, got dict"),
        ([1], MEAN, {}, RefusedError, "expected objects with type and path"),
    ],
)  # fmt: skip
def test_embedders_that_are_refused(
    tmp_path: Path, listed: Any, pooling: Any, more: Any, kind: type, message: str
) -> None:
    write(tmp_path, modules=listed, **{"1_Pooling__config": pooling}, sentence_bert_config=more)
    with pytest.raises(kind, match=message):
        read_sentences(tmp_path)
