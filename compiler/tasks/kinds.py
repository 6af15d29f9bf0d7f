"""Which task a checkpoint directory is for, from `architectures` of its config and `modules.json`.

In: a directory. Out: a `Kind`, or None for what is left to the capture of language models, which also says
what is wrong with a directory that is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.ir.errors import UnsupportedError
from tilewright.tasks.files import read_json

EMBEDDING, COMPARISON = "sentence-embedding", "zero-shot-image-classification"
#: how the names of transformers' classes end, and the tasks that they are for
ENDINGS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
    "ForImageClassificationWithTeacher": "image-classification",
    "CLIPModel": COMPARISON,
    "Model": "feature-extraction",
}
#: what classes with other endings would need
REFUSED = {
    "ForConditionalGeneration": "models that generate text from an encoder's states are not supported",
    "ForSpeechSeq2Seq": "models that generate text from an encoder's states are not supported",
    "ForSemanticSegmentation": "segmentation has no post-processing here",
    "ForObjectDetection": "detection has no post-processing here",
    "ForPreTraining": "pre-training heads have no task",
    "ForMultipleChoice": "multiple choice has no post-processing here",
    "ForNextSentencePrediction": "next sentence prediction has no post-processing here",
    "ForCTC": "speech has no preprocessing here",
    "ForAudioClassification": "speech has no preprocessing here",
}
AS_MODULE = "compile it in Python as an `nn.Module` with example inputs: tilewright.compile(module, …)"


@dataclass(frozen=True)
class Kind:
    """`task`: its name; `architecture`: the class of transformers ("": the model without a head)."""

    task: str
    architecture: str
    config: dict[str, Any]


def kind_of(directory: Path) -> Kind | None:
    """None if the directory is not known to be for one of these tasks. Raises UnsupportedError for a class
    that has a task which is not supported, RefusedError for a damaged file."""
    if not (directory / "config.json").is_file():
        return None
    config = read_json(directory / "config.json")
    listed = config.get("architectures")
    name = str(listed[0]) if isinstance(listed, list) and listed else ""
    where = str(directory / "config.json")
    if (directory / "modules.json").is_file() and not name.endswith(("ForCausalLM", "LMHeadModel")):
        if _generates(name, config):
            raise UnsupportedError(f"{name}: embedders with a decoder are not supported", where, AS_MODULE)
        return Kind(EMBEDDING, name if name.endswith("EncoderModel") else "", config)
    return _by_name(name, config, where)


def _by_name(name: str, config: dict[str, Any], where: str) -> Kind | None:
    ending = next((e for e in sorted(ENDINGS, key=len, reverse=True) if name.endswith(e)), None)
    if name.endswith("LMHeadModel"):
        return None
    why = next((text for end, text in REFUSED.items() if name.endswith(end)), None)
    if why is None and ending is not None and _generates(name, config):
        why = REFUSED["ForConditionalGeneration"]
    if why is None and ending == "Model" and "text_config" in config and "vision_config" in config:
        why = "of the models that take texts and images, only CLIPModel is supported"
    if why is not None:
        raise UnsupportedError(f"{name}: {why}", where, AS_MODULE)
    if ending is None:
        return None
    task = ENDINGS[ending]
    if task == "feature-extraction" and "vocab_size" not in config and "num_channels" in config:
        task = "image-feature-extraction"
    return Kind(task, name, config)


def _generates(name: str, config: dict[str, Any]) -> bool:
    """Whether the model has an encoder and a decoder of text."""
    if name.endswith("EncoderModel"):
        return False
    return config.get("is_encoder_decoder") is True and "vocab_size" in config
