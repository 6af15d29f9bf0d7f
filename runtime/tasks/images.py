"""Image files to the numbers that a model takes, as transformers' image processors for Pillow make them.

In: a path, a Pillow image, or an array of 8-bit pixels; what the manifest says of preparation. Out: float32
[channels, height, width]. Pillow is imported on first use: nothing else in the runtime needs it.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.errors import SessionError
from tilewright.runtime.files import open_regular
from tilewright.runtime.json_fields import kind
from tilewright.runtime.task_entry import LARGEST_SIDE, ImageEntry, Preparation, Resize

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.generic]
#: what files may be; Pillow would start another program for some formats (EPS)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
WANTED = "pass the path of an image file, a Pillow image, or a uint8 array [height, width, channels]"


def prepared(image: object, entry: ImageEntry) -> NDArray[np.float32]:
    """One image ready for the graph. SessionError for a file that is missing or not an image, and for an
    artifact that does not say how images are prepared."""
    if entry.prepare is None:
        hint = "compile from a folder with preprocessor_config.json, or call the model with prepared arrays"
        raise SessionError("the artifact does not say how images are prepared", "image", hint)
    pixels = _prepare(_opened(image, entry.channels), entry.prepare)
    wanted = entry.channels, entry.height, entry.width
    if pixels.shape != wanted:
        hint = "preprocessor_config.json and the model's config disagree: correct one, and compile again"
        raise SessionError(
            f"preparation gives {list(pixels.shape)}, the model takes {list(wanted)}", "image", hint
        )
    return np.asarray(pixels, np.float32, order="C")


# ------------------------------------------------------------------ opening
def _opened(image: object, channels: int) -> Image:
    """Upright, with as many channels as the model takes."""
    pillow = _pillow()
    where = str(image) if isinstance(image, str | os.PathLike) else "image"
    try:
        if isinstance(image, str | os.PathLike):
            with open_regular(image) as f:
                return _upright(pillow.open(f, formats=FORMATS), channels)
        if isinstance(image, np.ndarray):
            return _upright(pillow.fromarray(_checked(image)), channels)
        if isinstance(image, pillow.Image):
            return _upright(image, channels)
    except FileNotFoundError:
        raise SessionError("there is no such file", where, WANTED) from None
    except SessionError:
        raise
    except Exception as e:  # a decoder may raise anything on a damaged file
        raise SessionError(f"not a readable image: {_said(e)}", where, WANTED) from None
    raise SessionError(f"expected an image, got {kind(image)}", where, WANTED)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        hint = "pip install 'tilewright[vision]'"
        raise SessionError("images are read with Pillow, which is not installed", "image", hint) from None
    return Image


def _upright(image: Image, channels: int) -> Image:
    from PIL import ImageOps

    if max(image.size) > LARGEST_SIDE:
        raise SessionError(
            f"{image.size[0]} x {image.size[1]} pixels, at most {LARGEST_SIDE} a side", "image"
        )
    turned = ImageOps.exif_transpose(image)
    return turned.convert("L" if channels == 1 else "RGB")


def _checked(array: Pixels) -> Pixels:
    """Pixels [H, W] or [H, W, 1, 3 or 4] of 8 bits."""
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not fits or not array.size:
        raise SessionError(f"{array.dtype} of shape {list(array.shape)}", "image", WANTED)
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _said(e: Exception) -> str:
    """An error's first line, without the Python object that Pillow ends some with."""
    line = (str(e).splitlines() or [type(e).__name__])[0]
    return str(getattr(e, "strerror", None) or line.partition(" <")[0])[:160]


# ------------------------------------------------------------------ preparing
def _prepare(image: Image, how: Preparation) -> NDArray[np.float64]:
    if how.resize is not None:
        image = _resized(image, how.resize)
    flat = np.asarray(image, np.uint8)
    pixels: Pixels = flat[None] if flat.ndim == 2 else np.moveaxis(flat, -1, 0)
    if how.crop:
        pixels = _cropped(pixels, how.crop[0], how.crop[1])
    out = pixels.astype(np.float64) * how.scale
    if how.mean:
        mean, std = (np.asarray(v)[:, None, None] for v in (how.mean, how.std))
        out = (out - mean) / std
    return out


def _resized(image: Image, how: Resize) -> Image:
    height, width = how.height, how.width
    if how.to == "shortest":
        short, long = sorted(image.size)
        other = min(int(how.height * long / short), LARGEST_SIDE)
        height, width = (other, how.height) if image.size[0] <= image.size[1] else (how.height, other)
    return image.resize((width, height), getattr(_pillow().Resampling, how.filter.upper()))


def _cropped(pixels: Pixels, height: int, width: int) -> Pixels:
    """The centre; where the image is smaller, zeros around it."""
    have = pixels.shape[1:]
    grown = max(height, have[0]), max(width, have[1])
    at = math.ceil((grown[0] - have[0]) / 2), math.ceil((grown[1] - have[1]) / 2)
    whole = np.zeros((len(pixels), *grown), pixels.dtype)
    whole[:, at[0] : at[0] + have[0], at[1] : at[1] + have[1]] = pixels
    top, left = (have[0] - height) // 2 + at[0], (have[1] - width) // 2 + at[1]
    return whole[:, top : top + height, left : left + width]
