"""What a compiled encoder or vision model is for, as the manifest says it: task, labels, how inputs are made.

In: JSON that is not trusted. Out: a `TaskEntry` whose every field was checked for type and range. Executes
nothing and opens no file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.runtime.errors import ArtifactError
from tilewright.runtime.json_fields import DAMAGED, Node, kind

#: a side of an image, in pixels
LARGEST_SIDE = 1 << 14
#: Pillow's filters by number
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
#: how scores follow from logits
SCORES = ("softmax", "sigmoid", "none")
RESIZES = ("exact", "shortest")
LONGEST_LABEL = 4096


@dataclass(frozen=True)
class TextEntry:
    """`graph` takes token ids of at most `longest` tokens; `pad`: the id that fills rows that are too
    short, unless the tokenizer names one."""

    graph: str
    longest: int
    pad: int


@dataclass(frozen=True)
class Resize:
    """To `height` x `width` pixels (`exact`), or until the shorter side is `height` (`shortest`); `filter`:
    one of FILTERS."""

    to: str
    height: int
    width: int
    filter: str


@dataclass(frozen=True)
class Preparation:
    """From 8-bit pixels to a model's numbers, in this order: resize, cut out the centre (`crop`: height and
    width, or empty), multiply by `scale`, subtract `mean` and divide by `std` (per channel, or empty)."""

    resize: Resize | None
    crop: tuple[int, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of what it makes; None if that depends on the image."""
        if self.crop:
            return self.crop[0], self.crop[1]
        if self.resize is None or self.resize.to != "exact":
            return None
        return self.resize.height, self.resize.width


@dataclass(frozen=True)
class ImageEntry:
    """`graph` takes images of this size. `prepare`: how they are made; None: the model's folder did not say
    it."""

    graph: str
    channels: int
    height: int
    width: int
    prepare: Preparation | None


@dataclass(frozen=True)
class TaskEntry:
    """`name`: as transformers' pipelines call it, or `sentence-embedding`. `labels`: of the columns of its
    logits. `scores`: one of SCORES. `pooling` (`mean`, `cls`, `max` or empty) and `normalized` describe what
    the graph does to make one vector of a text."""

    name: str
    labels: tuple[str, ...] = ()
    scores: str = "none"
    pooling: str = ""
    normalized: bool = False
    text: TextEntry | None = None
    image: ImageEntry | None = None


# ------------------------------------------------------------------ reading
def parse_task(node: Node) -> TaskEntry:
    """Raises ArtifactError naming the field, what was expected and what was found."""
    labels = node.items("labels")
    if not all(isinstance(v, str) and len(v) <= LONGEST_LABEL for v in labels):
        raise ArtifactError("labels: expected a list of names", node.where, DAMAGED)
    return TaskEntry(
        node.text("name", 80),
        tuple(map(str, labels)),
        _one_of(node, "scores", SCORES),
        node.text("pooling", 20),
        node.flag("normalized"),
        None if node.raw("text") is None else _text(node.node("text")),
        None if node.raw("image") is None else _image(node.node("image")),
    )


def _text(node: Node) -> TextEntry:
    most = (1 << 31) - 1
    return TextEntry(node.text("graph"), node.integer("longest", 1, most), node.integer("pad", 0, most))


def _image(node: Node) -> ImageEntry:
    channels, height, width = (node.integer(k, 1, LARGEST_SIDE) for k in ("channels", "height", "width"))
    prepare = None if node.raw("prepare") is None else _preparation(node.node("prepare"))
    return ImageEntry(node.text("graph"), channels, height, width, prepare)


def _preparation(node: Node) -> Preparation:
    crop = tuple(_number(v, "crop", node) for v in node.items("crop", 2))
    if len(crop) == 1 or not all(v == int(v) and 1 <= v <= LARGEST_SIDE for v in crop):
        raise ArtifactError(f"crop: expected height and width, got {crop}", node.where, DAMAGED)
    mean, std = (tuple(_number(v, k, node) for v in node.items(k, 64)) for k in ("mean", "std"))
    if len(mean) != len(std) or 0.0 in std:
        raise ArtifactError("std: expected a number other than 0 for each mean", node.where, DAMAGED)
    resize = None if node.raw("resize") is None else _resize(node.node("resize"))
    scale = _number(node.raw("scale"), "scale", node)
    return Preparation(resize, tuple(map(int, crop)), scale, mean, std)


def _resize(node: Node) -> Resize:
    height, width = (node.integer(k, 1, LARGEST_SIDE) for k in ("height", "width"))
    return Resize(_one_of(node, "to", RESIZES), height, width, _one_of(node, "filter", FILTERS))


def _one_of(node: Node, key: str, known: tuple[str, ...]) -> str:
    value = node.text(key, 20)
    if value not in known:
        raise ArtifactError(f"{key}: expected one of {', '.join(known)}, got {value!r}", node.where, DAMAGED)
    return value


def _number(value: object, key: str, node: Node) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ArtifactError(f"{key}: expected a number, got {kind(value)}", node.where, DAMAGED)
    return float(value)  # type: ignore[arg-type]
