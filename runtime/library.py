"""The C interface (`native/tilewright.h`) from Python: one class per handle, every error an exception.

In: a library file, loaded from a private copy, and weights: an artifact folder or memory. Out: `Library`,
`NativeSession`. Independent of tokens or text.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.runtime.errors import ArtifactError, SessionError
from tilewright.runtime.private import load_private

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    AnyArray = NDArray[Any]

ABI = 7
_P, _I32, _I64, _S = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_char_p


class _Info(ctypes.Structure):
    _fields_ = (
        *((n, _I32) for n in ("abi", "context", "vocab", "columns", "max_tokens", "graphs", "symbols",
        "follows", "block", "states")),
        *((n, _I64) for n in ("weights_bytes", "arena_bytes", "sequence_bytes")),
        ("id", _S), ("level", _S), ("block_columns", _S),
    )  # fmt: skip


class _CacheInfo(ctypes.Structure):
    _fields_ = (
        *((n, _S) for n in ("name", "key_type", "value_type", "select")),
        *((n, _I32) for n in ("heads", "context", "evicts", "observes")),
        ("key_bytes", _I64),
        ("value_bytes", _I64),
    )


_SIGNATURES: Mapping[str, tuple[object, Sequence[object]]] = {
    "tw_about": (ctypes.POINTER(_Info), ()),
    "tw_error": (_S, ()),
    "tw_open": (_I32, (_S, ctypes.POINTER(_P))),
    "tw_open_memory": (_I32, (_P, _I64, ctypes.POINTER(_P))),
    "tw_close": (None, (_P,)),
    "tw_session_new": (_I32, (_P, _I32, _I32, ctypes.POINTER(_P))),
    "tw_session_free": (None, (_P,)),
    "tw_set_threads": (_I32, (_P, _I32)),
    "tw_threads": (_I32, (_P,)),
    "tw_step": (_I32, (_P, _I32, _P, _P, _P, _I32, _P, _P)),
    "tw_fork": (_I32, (_P, _I32, _I32, _I32)),
    "tw_drop": (_I32, (_P, _I32)),
    "tw_expect": (_I32, (_P, _I32, _I32)),
    "tw_cache": (_I32, (_I32, ctypes.POINTER(_CacheInfo))),
    "tw_read_rows": (_I32, (_P, *([_I32] * 6), _P, _I64)),
    "tw_write_rows": (_I32, (_P, *([_I32] * 6), _P, _I64)),
    "tw_gone": (_I32, (_P, _I32, _I32, _I32, ctypes.POINTER(_I32))),
    "tw_keep": (_I32, (_P, *([_I32] * 5), _P)),
    "tw_observe": (_I32, (_P, _I32, _P)),
    "tw_choose": (_I32, (_P, _I32, _I32, _I32, _I32)),
    "tw_truncate": (_I32, (_P, _I32, _I32, _I32)),
    "tw_save": (_I32, (_P, _I32, _I32, _P, ctypes.POINTER(_I64))),
    "tw_restore": (_I32, (_P, _I32, _I32, _P, _P, _I64)),
    "tw_together": (_I32, (_P,)),
    "tw_least": (_I32, (_P, _I32)),
    "tw_graph": (_I32, (_S,)),
    "tw_symbol": (_S, (_I32, ctypes.POINTER(_I64), ctypes.POINTER(_I64))),
    "tw_tensor": (
        _S,
        (
            _I32,
            _I32,
            _I32,
            ctypes.POINTER(_I64),
            ctypes.POINTER(_S),
            ctypes.POINTER(_I32),
            ctypes.POINTER(_I64),
        ),
    ),
    "tw_run": (_I32, (_P, _I32, ctypes.POINTER(_I64), _P, ctypes.POINTER(_I64), _P, ctypes.POINTER(_I64))),
}


@dataclass(frozen=True)
class CacheFacts:
    """One cache of a library: its heads, whether it loses rows and counts attention, the element types and
    bytes of one row of one head's keys and values. A type is empty where rows are packed. `select`: how
    tokens choose the blocks that they read; empty if they read all."""

    name: str
    heads: int
    evicts: bool
    observes: bool
    types: tuple[str, str]
    row_bytes: tuple[int, int]
    select: str = ""


class Library:
    """A loaded level of a model: its info, and the weights mapped once."""

    def __init__(self, file: Path, weights: Path | memoryview, content_id: str, sha256: str = "") -> None:
        """`weights`: an artifact's folder, or writable memory that holds what its `weights.bin` would, at a
        multiple of 64 bytes. `sha256`: what the file must hold; empty for one that was just built here."""
        self.file, self.dll = file, _load(file, sha256)
        info = self.dll.tw_about().contents
        if info.abi != ABI:
            raise ArtifactError(
                f"interface version {info.abi}, expected {ABI}", str(file), "compile the model again"
            )
        if info.id.decode() != content_id:
            raise ArtifactError(
                "the library belongs to another compilation than the manifest",
                str(file),
                "compile the model again",
            )
        self.context, self.vocab, self.max_tokens = (
            int(info.context),
            int(info.vocab),
            int(info.max_tokens),
        )
        self.columns, self.follows = int(info.columns), bool(info.follows)
        self.block = int(info.block)
        self.block_columns = tuple(info.block_columns.decode().split())
        self.graphs, self.symbols = int(info.graphs), int(info.symbols)
        self.sequence_bytes, self.level = int(info.sequence_bytes), str(info.level.decode())
        self.caches = tuple(self._cache(n) for n in range(int(info.states)))
        self.model, self._memory = _P(), weights  # memory stays as long as the library reads it
        if self._open(weights):
            raise ArtifactError(self.error(), "", "")

    def _open(self, weights: Path | memoryview) -> int:
        if isinstance(weights, Path):
            return int(self.dll.tw_open(os.fsencode(weights), ctypes.byref(self.model)))
        address = ctypes.addressof(ctypes.c_char.from_buffer(weights))
        return int(self.dll.tw_open_memory(address, weights.nbytes, ctypes.byref(self.model)))

    def _cache(self, number: int) -> CacheFacts:
        info = _CacheInfo()
        if self.dll.tw_cache(number, ctypes.byref(info)):
            raise ArtifactError(self.error(), str(self.file), "compile the model again")
        names = info.name.decode(), info.key_type.decode(), info.value_type.decode()
        sizes = int(info.key_bytes), int(info.value_bytes)
        flags, select = (bool(info.evicts), bool(info.observes)), info.select.decode()
        return CacheFacts(names[0], int(info.heads), *flags, names[1:], sizes, select)

    def error(self) -> str:
        return bytes(self.dll.tw_error()).decode(errors="replace")

    def graph(self, name: str) -> int | None:
        n = int(self.dll.tw_graph(name.encode()))
        return None if n < 0 else n

    def ranges(self) -> list[tuple[str, int, int]]:
        """Name, least and most of each symbol, in the order that calls take them."""
        out: list[tuple[str, int, int]] = []
        lo, hi = _I64(), _I64()
        for i in range(self.symbols):
            name = self.dll.tw_symbol(i, ctypes.byref(lo), ctypes.byref(hi))
            out.append((name.decode(), lo.value, hi.value))
        return out

    def tensor(
        self, graph: int, output: bool, index: int, symbols: Sequence[int]
    ) -> tuple[str, str, tuple[int, ...]] | None:
        """Name, dtype, shape of an input or output for these symbols; None past the last."""
        dtype, rank, dims = _S(), _I32(), (_I64 * 8)()
        values = (_I64 * max(len(symbols), 1))(*symbols)
        name = self.dll.tw_tensor(
            graph, int(output), index, values, ctypes.byref(dtype), ctypes.byref(rank), dims
        )
        return (
            None
            if name is None
            else (name.decode(), str((dtype.value or b"").decode()), tuple(dims[: rank.value]))
        )

    def close(self) -> None:
        if self.model.value:
            self.dll.tw_close(self.model)
            self.model.value = None

    def __del__(self, exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        if hasattr(self, "model") and not exiting():  # what it calls may be gone then; the system frees all
            self.close()


class NativeSession:
    """A session of the library; frees itself."""

    def __init__(self, library: Library, sequences: int, threads: int | None) -> None:
        self.library, self.handle = library, _P()
        self._check(
            library.dll.tw_session_new(library.model, sequences, threads or 0, ctypes.byref(self.handle))
        )

    def _check(self, code: int) -> None:
        if code:
            raise SessionError(self.library.error())

    @property
    def threads(self) -> int:
        return int(self.library.dll.tw_threads(self.handle))

    def set_threads(self, threads: int | None) -> None:
        self._check(self.library.dll.tw_set_threads(self.handle, threads or 0))

    def step(
        self,
        ids: NDArray[np.int32],
        pos: NDArray[np.int32],
        seq: NDArray[np.int32],
        rows: NDArray[np.int32],
        logits: NDArray[np.float32],
    ) -> None:
        """Arrays are contiguous; logits is [len(rows), columns]."""
        data = [a.ctypes.data for a in (ids, pos, seq, rows, logits)]
        self._check(self.library.dll.tw_step(self.handle, len(ids), *data[:3], len(rows), *data[3:]))

    def fork(self, source: int, target: int, length: int) -> None:
        self._check(self.library.dll.tw_fork(self.handle, source, target, length))

    def expect(self, sequence: int, length: int) -> None:
        """How many tokens a sequence will have once those are in that come next, in however many steps."""
        self._check(self.library.dll.tw_expect(self.handle, sequence, length))

    def drop(self, sequence: int) -> None:
        self._check(self.library.dll.tw_drop(self.handle, sequence))

    @property
    def together(self) -> int:
        """Tokens of the last step whose sequences' common beginning was read once for all of them."""
        return int(self.library.dll.tw_together(self.handle))

    # ------------------------------------------------------------ rows of caches
    def read_rows(self, cache: int, what: int, sequence: int, head: int, first: int, out: AnyArray) -> None:
        """Fill `out`, contiguous and one row of the cache for each of its rows. `what`: 0 keys, 1 values, 2
        positions, 3 scores."""
        where = (cache, what, sequence, head, first, len(out))
        self._check(self.library.dll.tw_read_rows(self.handle, *where, out.ctypes.data, out.nbytes))

    def write_rows(self, cache: int, what: int, sequence: int, head: int, first: int, rows: AnyArray) -> None:
        """The inverse of `read_rows`."""
        where = (cache, what, sequence, head, first, len(rows))
        self._check(self.library.dll.tw_write_rows(self.handle, *where, rows.ctypes.data, rows.nbytes))

    def gone(self, cache: int, sequence: int, head: int) -> int:
        """How many rows a head has lost."""
        found = _I32()
        self._check(self.library.dll.tw_gone(self.handle, cache, sequence, head, ctypes.byref(found)))
        return found.value

    def keep(self, cache: int, sequence: int, head: int, length: int, rows: NDArray[np.int32]) -> None:
        """Of a head of a sequence of `length` tokens, keep these rows, ascending."""
        where = (cache, sequence, head, length, len(rows))
        self._check(self.library.dll.tw_keep(self.handle, *where, rows.ctypes.data))

    def observe(self, runs: NDArray[np.int32]) -> None:
        """The runs [n, 4] whose attention the next step adds to the scores of cached rows."""
        self._check(self.library.dll.tw_observe(self.handle, len(runs), runs.ctypes.data))

    def choose(self, row: int, budget: int, first: int, last: int) -> None:
        """Token `row` of the next step reads at most `budget` blocks of cached rows, the `first` and the
        `last` ones among them."""
        self._check(self.library.dll.tw_choose(self.handle, row, budget, first, last))

    def truncate(self, sequence: int, length: int, to: int) -> None:
        """Forget the tokens of a sequence of `length` tokens from `to` on."""
        self._check(self.library.dll.tw_truncate(self.handle, sequence, length, to))

    def least(self, sequence: int) -> int:
        """The least length, other than 0, to which a sequence can be cut: more than 0 only where caches keep
        exact rows of recent tokens, of which those before are gone."""
        return int(self.library.dll.tw_least(self.handle, sequence))

    def save(self, sequence: int, length: int) -> NDArray[np.uint8]:
        """What a sequence of `length` tokens holds."""
        import numpy as np

        size = _I64()
        self._check(self.library.dll.tw_save(self.handle, sequence, length, None, ctypes.byref(size)))
        out = np.empty(size.value, np.uint8)
        where = out.ctypes.data
        self._check(self.library.dll.tw_save(self.handle, sequence, length, where, ctypes.byref(size)))
        return out

    def restore(self, sequence: int, ids: NDArray[np.int32], rows: NDArray[np.uint8]) -> None:
        """The inverse, into a sequence that then holds these ids."""
        data = ids.ctypes.data, rows.ctypes.data
        self._check(self.library.dll.tw_restore(self.handle, sequence, len(ids), *data, rows.nbytes))

    # ------------------------------------------------------------ graphs without state
    def run(
        self,
        graph: int,
        symbols: Sequence[int],
        inputs: Sequence[NDArray[np.generic]],
        outputs: Sequence[NDArray[np.generic]],
    ) -> None:
        """Arrays are contiguous and of the shapes that `Library.tensor` gives."""
        values = (_I64 * max(len(symbols), 1))(*symbols)
        self._check(
            self.library.dll.tw_run(self.handle, graph, values, *_pointers(inputs), *_pointers(outputs))
        )

    def close(self) -> None:
        if self.handle.value:
            self.library.dll.tw_session_free(self.handle)
            self.handle.value = None

    def __del__(self, exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        if hasattr(self, "handle") and not exiting():
            self.close()


def _pointers(arrays: Sequence[NDArray[np.generic]]) -> tuple[object, object]:
    n = max(len(arrays), 1)
    return (_P * n)(*[a.ctypes.data for a in arrays]), (_I64 * n)(*[a.nbytes for a in arrays])


def _load(file: Path, sha256: str) -> ctypes.CDLL:
    try:
        dll = load_private(file, sha256)
        for name, (result, args) in _SIGNATURES.items():
            f = getattr(dll, name)
            f.restype, f.argtypes = result, args
    except (OSError, AttributeError) as e:
        raise ArtifactError(
            f"cannot be loaded ({e})", str(file), "compile the model again on this machine"
        ) from None
    return dll
