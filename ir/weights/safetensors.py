"""A small reader and writer of safetensors files.

The reader checks the header and maps the tensors; it executes nothing and copies nothing until asked. The
writer writes whole files.

In: a path. Out: raw arrays by key with their dtype. Every offset is checked against the file before it is
used.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from tilewright.ir.errors import RefusedError
from tilewright.ir.numbers import STORED
from tilewright.ir.ops.base import Array

#: dtype names of the file format
DTYPES = {
    "F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "I64": "i64", "I32": "i32", "U32": "u32",
    "I16": "i16",
    "U16": "u16", "I8": "i8", "U8": "u8", "BOOL": "bool",
}  # fmt: skip
MAX_HEADER = 100 << 20


@dataclass(frozen=True)
class Entry:
    """One tensor: our dtype (empty if the format's has none here, then `stored` names it), shape, bytes
    `start..stop`."""

    dtype: str
    stored: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafeTensors:
    """The tensors of one file, by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = _read_header(path)
        self._mapped: Array | None = None

    def raw(self, key: str) -> tuple[Array, str]:
        """The mapped bits of a tensor (STORED[dtype]) and its dtype. RefusedError if it is missing or of no
        known type."""
        e = self.entries.get(key)
        if e is None:
            raise RefusedError(
                f"no tensor {key!r}", str(self.path), "the checkpoint does not match the model's config"
            )
        if not e.dtype:
            raise RefusedError(
                f"tensor {key!r} has dtype {e.stored}", str(self.path), f"known: {', '.join(DTYPES)}"
            )
        kind = np.dtype(STORED[e.dtype])
        if math.prod(e.shape) == 0:
            return np.zeros(e.shape, kind), e.dtype
        return self._bytes()[e.start : e.stop].view(kind).reshape(e.shape), e.dtype

    def _bytes(self) -> Array:
        """The whole file, mapped once."""
        if self._mapped is None:
            self._mapped = np.asarray(np.memmap(self.path, np.uint8, "r"))
        return self._mapped


def _read_header(path: Path) -> dict[str, Entry]:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for a writer
            raise RefusedError("expected a regular file", str(path), "check the checkpoint directory")
        size = info.st_size
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise RefusedError(
                    f"header of {length} bytes in a file of {size}", str(path), "the file is damaged"
                )
            header = json.loads(f.read(length))
    except OSError as e:
        raise RefusedError(
            f"cannot read it: {e.strerror}", str(path), "check the checkpoint directory"
        ) from None
    except (ValueError, RecursionError) as e:
        if isinstance(e, RefusedError):
            raise
        raise RefusedError(f"the header is not JSON: {e}", str(path), "the file is damaged") from None
    if not isinstance(header, dict):
        raise RefusedError("the header is not a JSON object", str(path), "the file is damaged")
    entries = {k: _entry(path, k, v, 8 + length, size) for k, v in header.items() if k != "__metadata__"}
    _check_apart(path, entries)
    return entries


def _check_apart(path: Path, entries: dict[str, Entry]) -> None:
    """Tensors that share bytes: the format has none, and one of them would be wrong."""
    filled = sorted((e.start, e.stop, k) for k, e in entries.items() if e.stop > e.start)
    for (_, end, first), (start, _, second) in pairwise(filled):
        if start < end:
            raise RefusedError(f"tensors {first!r} and {second!r} overlap", str(path), "the file is damaged")


def _entry(path: Path, key: str, v: object, base: int, size: int) -> Entry:
    try:
        assert isinstance(v, dict)
        shape, (start, stop), stored = tuple(v["shape"]), v["data_offsets"], v["dtype"]
        assert all(type(n) is int and n >= 0 for n in (*shape, start, stop)) and isinstance(stored, str)
    except (AssertionError, KeyError, TypeError, ValueError):
        raise RefusedError(f"tensor {key!r} has an invalid entry", str(path), "the file is damaged") from None
    dtype = DTYPES.get(stored, "")
    width = np.dtype(STORED[dtype]).itemsize if dtype else 0
    if not start <= stop <= size - base or (dtype and stop - start != math.prod(shape) * width):
        message = f"tensor {key!r} of {stored} {list(shape)} has bytes {start}..{stop} of {size - base}"
        raise RefusedError(message, str(path), "the file is damaged or truncated")
    return Entry(dtype, stored, shape, base + start, base + stop)


# ------------------------------------------------------------------ writing
def write_safetensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Arrays of NumPy's own element types as one file, which is there whole or not at all."""
    header: dict[str, object] = {}
    at, arrays = 0, {k: np.ascontiguousarray(x) for k, x in tensors.items()}
    for key, x in arrays.items():
        header[key] = {
            "dtype": _FORMAT_NAMES[x.dtype.name],
            "shape": list(x.shape),
            "data_offsets": [at, at + x.nbytes],
        }
        at += x.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        for x in arrays.values():
            f.write(x.reshape(-1).view(np.uint8).data)
    part.replace(path)


_FORMAT_NAMES = {
    np.dtype(STORED[ours]).name: name for name, ours in DTYPES.items() if ours not in ("bf16", "bool")
}
