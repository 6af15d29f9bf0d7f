"""Files that hold one sequence of a session: its ids and what its caches hold.

In: a sequence's ids and rows, the model that they belong to. Out: a file, written whole or not at all. Read
back, everything is checked before it is used; a file is data only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.errors import SessionError
from tilewright.runtime.files import Unreadable, read_bytes

MAGIC, VERSION = b"TWSEQNCE", 1
#: most bytes of the header
MOST_HEADER = 1 << 20
#: most axes of what a policy remembers
MOST_AXES = 8
HINT = "save the sequence again"


@dataclass(frozen=True)
class SavedSequence:
    """`model`: which model's rows these are; `policy`: the cache policy that kept them (empty: all are
    there); `prompt`: the length at the latest prompt's end; `memory`: what the policy remembers."""

    model: str
    policy: str
    ids: NDArray[np.int32]
    rows: NDArray[np.uint8]
    prompt: int = 0
    memory: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file under another name first, and rename it when it is complete."""
        memory = [self.memory[k].tobytes() for k in sorted(self.memory)]
        body = b"".join([self.ids.tobytes(), *memory, self.rows.tobytes()])
        head = _Header(
            VERSION, self.model, self.policy, len(self.ids), self.prompt,
            {k: list(self.memory[k].shape) for k in sorted(self.memory)},
            self.rows.nbytes, hashlib.sha256(body).hexdigest(),
        )  # fmt: skip
        text = json.dumps(asdict(head)).encode()
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_bytes(MAGIC + len(text).to_bytes(8, "little") + text + body)
            os.replace(beside, path)
        except OSError as e:
            beside.unlink(missing_ok=True)
            raise SessionError(f"cannot be written ({e.strerror})", str(path)) from None


@dataclass(frozen=True)
class _Header:
    version: int
    model: str
    policy: str
    length: int
    prompt: int
    memory: dict[str, list[int]]
    bytes: int
    sha256: str


def read_saved(path: Path) -> SavedSequence:
    """The sequence in a file. SessionError for anything that is not one, whole and unchanged."""
    try:
        data = read_bytes(path)
    except (OSError, Unreadable) as e:
        raise SessionError(f"cannot be read ({e.strerror})", str(path)) from None
    head, body = _header(data, path)
    if hashlib.sha256(body).hexdigest() != head.sha256:
        raise SessionError("its contents are not those that were saved", str(path), HINT)
    sizes = [4 * head.length, *(4 * int(np.prod(s, dtype=object)) for s in head.memory.values()), head.bytes]
    if sum(sizes) != len(body) or not 0 <= head.prompt <= head.length:
        raise SessionError(f"expected {sum(sizes)} bytes after the header, got {len(body)}", str(path), HINT)
    ends = np.cumsum([0, *sizes]).tolist()
    pieces = [body[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    memory = {
        k: np.frombuffer(p, np.float32).reshape(s)
        for (k, s), p in zip(head.memory.items(), pieces[1:-1], strict=True)
    }
    ids, rows = np.frombuffer(pieces[0], np.int32), np.frombuffer(pieces[-1], np.uint8)
    return SavedSequence(head.model, head.policy, ids, rows, head.prompt, memory)


def _header(data: bytes, path: Path) -> tuple[_Header, bytes]:
    size = int.from_bytes(data[8:16], "little")
    if data[:8] != MAGIC or size > min(MOST_HEADER, len(data) - 16):
        raise SessionError("is not a file of a saved sequence", str(path), "pass one that a session saved")
    try:
        found: Any = json.loads(data[16 : 16 + size])
    except (ValueError, RecursionError):
        found = None
    version = found.get("version") if isinstance(found, dict) else None
    if version != VERSION:
        said = f"has version {version!r}, this version of tilewright reads {VERSION}"
        raise SessionError(said, str(path), HINT)
    types = {
        "model": str,
        "policy": str,
        "length": int,
        "prompt": int,
        "memory": dict,
        "bytes": int,
        "sha256": str,
    }
    wrong = [k for k, t in types.items() if type(found.get(k)) is not t]
    if (
        wrong
        or set(found) != {*types, "version"}
        or not _shapes(found["memory"])
        or min(found["length"], found["bytes"]) < 0
    ):
        raise SessionError("its header is not that of a saved sequence", str(path), HINT)
    return _Header(**found), data[16 + size :]


def _shapes(memory: Mapping[object, object]) -> bool:
    """Whether every entry is a list of sizes, as few as an array may have."""
    lists = [s for s in memory.values() if isinstance(s, list) and len(s) <= MOST_AXES]
    return len(lists) == len(memory) and all(type(n) is int and 0 <= n < 1 << 31 for s in lists for n in s)
