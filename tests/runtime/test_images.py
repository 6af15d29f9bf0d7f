"""Images as transformers' own processors prepare them, and what is said of those that cannot be read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf

from tests.compiler.head_models import picture
from tilewright.ir.errors import RefusedError, UnsupportedError
from tilewright.runtime.errors import SessionError
from tilewright.runtime.task_entry import ImageEntry, Preparation
from tilewright.runtime.tasks.images import prepared
from tilewright.tasks.preparation import PROCESSORS, read_preparation

Image = pytest.importorskip("PIL.Image", reason="images are read with Pillow")
VIT, DEIT, CLIP, CONVNEXT = (
    {"image_processor_type": f"{n}ImageProcessor"} for n in ("ViT", "DeiT", "CLIP", "ConvNext")
)
SQUARE = {"height": 32, "width": 24}
#: what preprocessor_config.json says, and fields of it that are left out where the class has defaults
CONFIGS: dict[str, dict[str, Any]] = {
    "defaults of ViT": {"image_processor_type": "ViTImageProcessor"},
    "defaults of DeiT": {"image_processor_type": "DeiTImageProcessor"},
    "defaults of CLIP": {"image_processor_type": "CLIPImageProcessor"},
    "defaults of Bit": {"image_processor_type": "BitImageProcessor"},
    "defaults of MobileNetV2": {"image_processor_type": "MobileNetV2ImageProcessor"},
    "defaults of ConvNext": {"image_processor_type": "ConvNextImageProcessor"},
    "defaults of Beit": {"image_processor_type": "BeitImageProcessor"},
    "defaults of Siglip": {"image_processor_type": "SiglipImageProcessor"},
    "defaults of MobileNetV1": {"image_processor_type": "MobileNetV1ImageProcessor"},
    "defaults of Pvt": {"image_processor_type": "PvtImageProcessor"},
    "its own crop": {"image_processor_type": "BeitImageProcessor", "do_center_crop": True, "size": 256},
    "nulls": {**DEIT, "do_resize": None, "do_center_crop": None, "crop_size": None},
    "labels": {"image_processor_type": "SegformerImageProcessor", "size": 40, "do_reduce_labels": True},
    "defaults of Segformer": {"image_processor_type": "SegformerImageProcessor"},
    "one number": {**VIT, "size": 30},
    "one number, the shorter side": {**CLIP, "size": 40, "crop_size": 36},
    "an older name": {"feature_extractor_type": "ViTFeatureExtractor", "size": SQUARE, "resample": 3},
    "a crop in the resize": {**CONVNEXT, "size": {"shortest_edge": 40},
                             "crop_pct": 0.8},
    "a crop beyond the image": {**DEIT, "size": {"height": 21, "width": 30},
                                "crop_size": {"height": 28, "width": 27}},
    "no resize": {**DEIT, "do_resize": False, "crop_size": SQUARE},
    "no normalisation": {**VIT, "do_normalize": False, "resample": 0},
    "no rescaling": {**VIT, "do_rescale": False, "resample": 1},
    "another scale": {**VIT, "rescale_factor": 1 / 127.5, "resample": 4},
}  # fmt: skip
CLASSES = {n: getattr(hf, f"{n}ImageProcessorPil") for n in PROCESSORS}


def entry(how: Preparation, wanted: Any) -> ImageEntry:
    return ImageEntry("forward", *(int(n) for n in wanted.shape), how)


@pytest.mark.parametrize("name", CONFIGS)
def test_as_transformers_prepares_them(tmp_path: Path, name: str) -> None:
    """Portrait, landscape and small; the config alone decides."""
    config = CONFIGS[name]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    named = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    processor = CLASSES[
        named.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    ].from_pretrained(tmp_path)
    how = read_preparation(tmp_path)
    assert how is not None
    for height, width in ((60, 47), (41, 83), (20, 20)):
        image = picture(height, width)
        want = processor(image, return_tensors="np")["pixel_values"][0]
        got = prepared(image, entry(how, want))
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
        assert got.dtype == np.float32
        assert how.size in (None, want.shape[1:])


# ------------------------------------------------------------------ files
HALVED = Preparation(None, (), 0.5, (), ())


def test_kinds_of_images(tmp_path: Path) -> None:
    """A file, an array and a Pillow image are the same; transparency, palettes, grey and turned ones too."""
    image = picture(12, 10)
    image.save(tmp_path / "a.png")
    how = ImageEntry("forward", 3, 12, 10, HALVED)
    want = np.moveaxis(np.asarray(image), -1, 0) * 0.5
    for given in (
        image,
        np.asarray(image),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        image.convert("RGBA"),
    ):
        np.testing.assert_array_equal(prepared(given, how), want)
    grey = prepared(np.asarray(image)[:, :, 0], how)
    np.testing.assert_array_equal(grey, np.stack([np.asarray(image)[:, :, 0] * 0.5] * 3))
    one = prepared(image, ImageEntry("forward", 1, 12, 10, HALVED))
    np.testing.assert_array_equal(one[0], np.asarray(image.convert("L")) * 0.5)
    turned = Image.Exif()
    turned[0x0112] = 6  # the top of the picture is at the right
    image.save(tmp_path / "b.png", exif=turned)
    sideways = prepared(tmp_path / "b.png", ImageEntry("forward", 3, 10, 12, HALVED))
    np.testing.assert_array_equal(sideways, np.rot90(want, -1, (1, 2)))


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    how = ImageEntry("forward", 3, 12, 10, HALVED)
    (tmp_path / "text.png").write_text("not an image")
    picture(12, 10).save(tmp_path / "a.eps")
    picture(12, 10).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:150])
    for given, message in (
        (tmp_path / "none.png", "none.png: there is no such file"),
        (tmp_path, "not a readable image: it is a folder, not a regular file"),
        (tmp_path / "text.png", "text.png: not a readable image: cannot identify image file"),
        (tmp_path / "a.eps", "a.eps: not a readable image: cannot identify image file"),
        (tmp_path / "cut.png", "cut.png: not a readable image"),
        (np.zeros((4, 4, 3)), r"float64 of shape \[4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 of shape \[0, 4, 3\]"),
        (12, "expected an image, got 12"),
        (picture(13, 10), r"preparation gives \[3, 13, 10\], the model takes \[3, 12, 10\]"),
    ):
        with pytest.raises(SessionError, match=message):
            prepared(given, how)
    with pytest.raises(SessionError, match="does not say how images are prepared"):
        prepared(picture(12, 10), ImageEntry("forward", 3, 12, 10, None))


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    message = "images are read with Pillow, which is not installed\n  help: pip install 'tilewright.vision.'"
    with pytest.raises(SessionError, match=message):
        prepared("a.png", ImageEntry("forward", 3, 12, 10, HALVED))


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"image_processor_type": "NoImageProcessor"}, UnsupportedError,
         "images are prepared by No\n  help: the known ones are ViTImageProcessor, DeiT"),
        ({**VIT, "image_std": None}, RefusedError, "image_std is missing"),
        ({"size": 3}, UnsupportedError, "images are prepared by an unnamed class"),
        ({**DEIT, "crop_size": {"height": 3}}, UnsupportedError, "crop_size is {'height': 3}"),
        ({**VIT, "size": {"longest_edge": 3}}, UnsupportedError,
         "size is {'longest_edge': 3}"),
        ({**VIT, "size": {"height": 0, "width": 3}}, RefusedError,
         "size.height: expected an integer from 1 to 16384, got 0"),
        ({**VIT, "resample": 9}, RefusedError, "resample: expected an int"),
        ({**VIT, "do_resize": 1}, RefusedError,
         "do_resize: expected true or false, got 1"),
        ({**VIT, "image_std": [0.5, 0.5]}, RefusedError, "do not fit"),
        ({**VIT, "image_mean": "x"}, RefusedError, "image_mean: expected"),
        ({**VIT, "do_pad": True}, UnsupportedError, "do_pad is not supp"),
    ],
)  # fmt: skip
def test_preparations_that_are_refused(tmp_path: Path, config: Any, kind: type, message: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(kind, match=message):
        read_preparation(tmp_path)
