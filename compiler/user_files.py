"""Files that a user names, read in one place: messages say what a wrong file is and what was expected.

In: a path, or standard input. Out: text or a NumPy array; RefusedError for a folder or a pipe, for bytes that
are not text, for more than a text can hold, and for what the system does not let us read. Independent of
what the text means.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.errors import RefusedError
from tilewright.runtime.files import Unreadable, open_regular

#: texts that are read at once are not larger than this
LARGEST = 256 << 20


def read_text(path: Path, expected: str) -> str:
    """The UTF-8 text of a file. `expected`: what to give instead of a wrong one, for the message."""
    return decoded(_bytes(path, expected), str(path), expected)


def read_stdin(expected: str) -> str:
    """The UTF-8 text of standard input."""
    stream = getattr(sys.stdin, "buffer", None)
    return decoded(stream.read(LARGEST + 1), "standard input", expected) if stream else sys.stdin.read()


def decoded(data: bytes, where: str, expected: str) -> str:
    """Bytes as UTF-8 text; the first byte that is none is named."""
    if len(data) > LARGEST:
        raise RefusedError(f"it contains more than {LARGEST >> 20} MiB", where, f"pass {expected}")
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as e:
        raise RefusedError(
            f"it is not UTF-8 text: byte 0x{data[e.start]:02x} at {e.start}", where, f"pass {expected}"
        ) from None


def _bytes(path: Path, expected: str) -> bytes:
    with _opened(path, expected) as f:
        return f.read(LARGEST + 1)


def read_npy(path: Path, expected: str) -> NDArray[np.generic]:
    """The numbers of an .npy file; nothing in it is executed."""
    hint = f"pass {expected}"
    with _opened(path, expected) as f:
        if f.read(6) != b"\x93NUMPY":
            raise RefusedError("it is not an .npy file", str(path), hint)
        f.seek(0)
        try:
            x: NDArray[np.generic] = np.load(f, allow_pickle=False)
        except (ValueError, EOFError, MemoryError, SyntaxError) as e:
            raise RefusedError(
                f"it is a damaged .npy file: {str(e).splitlines()[0][:160]}", str(path), hint
            ) from None
    if x.dtype.kind not in "biuf":
        raise RefusedError(f"it contains {x.dtype}, not numbers", str(path), hint)
    return x


@contextmanager
def _opened(path: Path, expected: str) -> Iterator[BufferedReader]:
    """A plain file; every other thing, and what the system says, as a RefusedError."""
    hint = f"pass {expected}"
    try:
        with open_regular(path) as f:
            yield f
    except FileNotFoundError:
        raise RefusedError("there is no such file", str(path), hint) from None
    except Unreadable as e:
        raise RefusedError(str(e), str(path), hint) from None
    except OSError as e:
        raise RefusedError(f"cannot be read: {e.strerror or e}", str(path), hint) from None
    except ValueError as e:  # a NUL in the name
        if isinstance(e, RefusedError):
            raise
        raise RefusedError(f"cannot be read: {e}", str(path), hint) from None
