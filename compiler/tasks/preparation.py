"""How a model's images are prepared, from `preprocessor_config.json`, with the defaults of its processor.

In: the file beside the weights. Out: a `Preparation`, None where there is no file. Configs leave out what
their class has as its default, and classes differ in what their fields mean, so those that are known are
listed here; any other is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilewright.ir.errors import RefusedError, UnsupportedError
from tilewright.runtime.task_entry import FILTERS, LARGEST_SIDE, Preparation, Resize
from tilewright.tasks.files import number, read_json, whole

HALF = (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BILINEAR, BICUBIC = 2, 3
STEPS = ("do_resize", "do_rescale", "do_normalize")
ON: dict[str, Any] = {**dict.fromkeys(STEPS, True), "do_center_crop": False, "rescale_factor": 1 / 255}


def _square(n: int) -> dict[str, int]:
    return {"height": n, "width": n}


def _defaults(size: Any, resample: int, mean: Any, std: Any, crop: int = 0, **more: Any) -> dict[str, Any]:
    found = {**ON, "size": size, "resample": resample, "image_mean": mean, "image_std": std, **more}
    return {**found, "do_center_crop": True, "crop_size": _square(crop)} if crop else found


#: by the name of the class without ImageProcessor; `integer`: what a size that is one number means
PROCESSORS: Mapping[str, dict[str, Any]] = {
    "ViT": _defaults(_square(224), BILINEAR, HALF, HALF),
    "DeiT": _defaults(_square(256), BICUBIC, HALF, HALF, 224),
    "CLIP": _defaults({"shortest_edge": 224}, BICUBIC, *CLIP, 224, integer="shortest_edge"),
    "Bit": _defaults({"shortest_edge": 224}, BICUBIC, *CLIP, 224, integer="shortest_edge"),
    "MobileNetV2": _defaults({"shortest_edge": 256}, BILINEAR, HALF, HALF, 224, integer="shortest_edge"),
    "ConvNext": _defaults(
        {"shortest_edge": 384}, BICUBIC, HALF, HALF, integer="shortest_edge", crop_pct=224 / 256
    ),
    "Beit": _defaults(_square(224), BICUBIC, HALF, HALF, crop_size=_square(224)),
    "Siglip": _defaults(_square(224), BICUBIC, HALF, HALF),
    "MobileNetV1": _defaults({"shortest_edge": 256}, BILINEAR, HALF, HALF, 224, integer="shortest_edge"),
    "Pvt": _defaults(_square(224), BICUBIC, *IMAGENET),
    "Segformer": _defaults(_square(512), BILINEAR, *IMAGENET),
}
ENDS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
#: steps that other processors have and that are not supported
OTHERS = ("do_pad", "do_thumbnail", "do_align_long_axis", "do_flip_channel_order")


def read_preparation(directory: Path) -> Preparation | None:
    """Raises RefusedError naming a field that is wrong or missing, UnsupportedError a step that is not
    supported."""
    path = directory / "preprocessor_config.json"
    raw = read_json(path)
    if raw is None:
        raw = (read_json(directory / "processor_config.json") or {}).get("image_processor")
    if not isinstance(raw, dict):
        return None
    where, name = str(path), processor_of(raw)
    if name not in PROCESSORS:
        known = ", ".join(f"{n}ImageProcessor" for n in PROCESSORS)
        hint = f"the known ones are {known}; remove the file to compile a model that takes arrays"
        raise UnsupportedError(f"images are prepared by {name or 'an unnamed class'}", where, hint)
    said = {k: False if v is None and k.startswith("do_") else v for k, v in raw.items()}
    config = {k: v for k, v in {**PROCESSORS[name], **said}.items() if v is not None}
    return _Reading(config, name, where).preparation()


def processor_of(raw: Mapping[str, Any]) -> str:
    """The processor's name without its ending, `ViT`."""
    named = str(raw.get("image_processor_type") or raw.get("feature_extractor_type") or "")
    return next((named.removesuffix(e) for e in ENDS if named.endswith(e)), named)


class _Reading:
    """One file's fields; `name`: of the processor."""

    def __init__(self, config: Mapping[str, Any], name: str, where: str) -> None:
        self.config, self.name, self.where = config, name, where

    def preparation(self) -> Preparation:
        odd = [k for k in OTHERS if self.config.get(k) not in (None, False)]
        if odd:
            hint = "prepare images yourself, and call the model with arrays"
            raise UnsupportedError(f"{odd[0]} is not supported", self.where, hint)
        resize, crop = self._resize() if self._on("do_resize") else (None, ())
        if self._on("do_center_crop"):
            crop = self._crop(crop)
        scale = number(self._field("rescale_factor"), "rescale_factor", self.where)
        scale = scale if self._on("do_rescale") else 1.0
        normal = self._on("do_normalize")
        mean, std = (self._channels(k) if normal else () for k in ("image_mean", "image_std"))
        if len(mean) != len(std) or 0.0 in std:
            raise RefusedError("image_mean and image_std do not fit together", self.where)
        return Preparation(resize, crop, scale, mean, std)

    def _field(self, key: str) -> Any:
        if key not in self.config:
            raise RefusedError(f"{key} is missing", self.where, "state it")
        return self.config[key]

    def _on(self, key: str) -> bool:
        value = self._field(key)
        if not isinstance(value, bool):
            raise RefusedError(f"{key}: expected true or false, got {value!r:.60}", self.where)
        return value

    def _resize(self) -> tuple[Resize, tuple[int, ...]]:
        """The resize, and the crop that belongs to it in ConvNext's."""
        size, filter_ = self._size("size"), self._filter()
        if "height" in size:
            return Resize("exact", size["height"], size["width"], filter_), ()
        short = size["shortest_edge"]
        if self.name != "ConvNext":
            return Resize("shortest", short, short, filter_), ()
        if short >= 384:
            return Resize("exact", short, short, filter_), ()
        grown = int(short / number(self._field("crop_pct"), "crop_pct", self.where))
        return Resize("shortest", grown, grown, filter_), (short, short)

    def _size(self, key: str) -> dict[str, int]:
        """`{height, width}` or `{shortest_edge}`; a single number is one of them, by the processor."""
        value = self._field(key)
        if type(value) is int:
            shortest = key == "size" and self.config.get("integer") == "shortest_edge"
            value = {"shortest_edge": value} if shortest else _square(value)
        if not isinstance(value, dict) or set(value) not in ({"height", "width"}, {"shortest_edge"}):
            hint = "the supported sizes are height and width, or shortest_edge"
            raise UnsupportedError(f"{key} is {value!r:.80}", self.where, hint)
        return {k: whole(v, f"{key}.{k}", self.where, 1, LARGEST_SIDE) for k, v in value.items()}

    def _crop(self, own: tuple[int, ...]) -> tuple[int, ...]:
        size = self._size("crop_size")
        crop = (
            size.get("height", size.get("shortest_edge", 0)),
            size.get("width", size.get("shortest_edge", 0)),
        )
        if own and own != crop:
            raise UnsupportedError(f"crops of {own} and {crop} after each other", self.where, "leave one out")
        return crop

    def _filter(self) -> str:
        return FILTERS[whole(self._field("resample"), "resample", self.where, 0, len(FILTERS) - 1)]

    def _channels(self, key: str) -> tuple[float, ...]:
        value = self._field(key)
        listed = value if isinstance(value, list | tuple) else [value]
        return tuple(number(v, key, self.where) for v in listed)
