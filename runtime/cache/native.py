"""The rows of a session's caches as policies see them, and a policy applied to a session's sequences.

In: a native session, how far each sequence is. Out: `CacheAccess` over the compiled model's memory; the runs
of observed queries of a step. Independent of which policy it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.bf16 import from_bf16, to_bf16
from tilewright.runtime.cache.access import F32, Rows
from tilewright.runtime.cache.manager import CacheManager, Progress
from tilewright.runtime.cache.policy import CachePolicy
from tilewright.runtime.errors import SessionError
from tilewright.runtime.library import NativeSession

KEYS, VALUES, POSITIONS, SCORES = range(4)
PACKED = "a cache of packed rows cannot be read or written by a policy"
UNPACKED = "compile with kv=bf16, f16 or f32, or choose a policy that does not merge or read tokens"


@dataclass(frozen=True)
class NativeCache:
    """One sequence's rows in a native session."""

    native: NativeSession
    sequence: int
    progress: Progress

    @property
    def layers(self) -> int:
        return len(self.native.library.caches)

    @property
    def length(self) -> int:
        return self.progress.length

    @property
    def prompt(self) -> int:
        return self.progress.prompt

    @property
    def memory(self) -> dict[str, F32]:
        return self.progress.memory

    def heads(self, layer: int) -> int:
        return self.native.library.caches[layer].heads

    def count(self, layer: int, head: int) -> int:
        """Rows that a head holds."""
        return self.length - self.native.gone(layer, self.sequence, head)

    def positions(self, layer: int, head: int) -> Rows:
        out = np.empty(self.count(layer, head), np.int32)
        self.native.read_rows(layer, POSITIONS, self.sequence, head, 0, out)
        return out

    def scores(self, layer: int, head: int) -> F32:
        """Zeros where the model does not count attention, which policies that ask for none may still read."""
        out = np.zeros(self.count(layer, head), np.float32)
        if not self.native.library.caches[layer].observes:
            return out
        self.native.read_rows(layer, SCORES, self.sequence, head, 0, out)
        return out

    def clear_scores(self, layer: int) -> None:
        for head in range(self.heads(layer)):
            zeros = np.zeros(self.count(layer, head), np.float32)
            self.native.write_rows(layer, SCORES, self.sequence, head, 0, zeros)

    def keys(self, layer: int, head: int) -> F32:
        return self._decoded(layer, head, KEYS)

    def values(self, layer: int, head: int) -> F32:
        return self._decoded(layer, head, VALUES)

    def write(self, layer: int, head: int, rows: Rows, keys: F32, values: F32) -> None:
        for what, new in ((KEYS, keys), (VALUES, values)):
            held = encoded(new, self._type(layer, what))
            for row, x in zip(rows.tolist(), held, strict=True):
                self.native.write_rows(layer, what, self.sequence, head, row, x[None])

    def keep(self, layer: int, rows: Sequence[Rows]) -> None:
        for head, kept in enumerate(rows):
            kept = np.ascontiguousarray(kept, np.int32)
            self.native.keep(layer, self.sequence, head, self.length, kept)

    def _type(self, layer: int, what: int) -> str:
        cache = self.native.library.caches[layer]
        if not cache.types[what]:
            raise SessionError(PACKED, f"cache {cache.name}", UNPACKED)
        return cache.types[what]

    def _decoded(self, layer: int, head: int, what: int) -> F32:
        dtype, cache = self._type(layer, what), self.native.library.caches[layer]
        out = np.empty((self.count(layer, head), cache.row_bytes[what]), np.uint8)
        self.native.read_rows(layer, what, self.sequence, head, 0, out)
        return decoded(out, dtype)


def decoded(rows: NDArray[np.uint8], dtype: str) -> F32:
    """Rows of stored elements [n, bytes] as floats."""
    if dtype == "bf16":
        return from_bf16(rows.view(np.uint16))
    held: NDArray[Any] = rows.view(np.float16 if dtype == "f16" else np.float32)
    return held.astype(np.float32)


def encoded(x: F32, dtype: str) -> NDArray[Any]:
    """The inverse of `decoded`: floats [n, d] as the bytes of their elements, rounded to nearest even."""
    x = np.ascontiguousarray(x, np.float32)
    if dtype == "bf16":
        return to_bf16(x)
    return x.astype(np.float16) if dtype == "f16" else x


@dataclass
class PolicyCaches:
    """A policy at work in a session: how far each sequence is, and what happens around each step."""

    native: NativeSession
    manager: CacheManager
    progress: dict[int, Progress] = field(default_factory=dict)

    def begin(self, sequence: int, tokens: int) -> None:
        """An item of so many tokens begins."""
        self.manager.begin(self.progress[sequence], tokens)

    def before(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        """A step follows over pieces (sequence, tokens, position of the first) in order."""
        runs, row = [], 0
        for sequence, tokens, position in pieces:
            seen = self.manager.observed(self.progress[sequence], tokens)
            if len(seen):
                runs.append((row + seen.start, len(seen), sequence, position + seen.start))
            chosen = self.manager.choice(self.progress[sequence])
            if chosen is not None:
                self.native.choose(row, *chosen)
            row += tokens
        if runs:
            self.native.observe(np.asarray(runs, np.int32))

    def after(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        """The step was run."""
        for sequence, tokens, _ in pieces:
            progress = self.progress[sequence]
            self.manager.advance(progress, tokens, NativeCache(self.native, sequence, progress))

    def access(self, sequence: int) -> NativeCache:
        return NativeCache(self.native, sequence, self.progress[sequence])


def policy_caches(native: NativeSession, policy: CachePolicy) -> PolicyCaches:
    """The policy applied to a new session. SessionError if the model was compiled without what it needs."""
    caches = native.library.caches
    hint = f'compile the model with cache="{policy}"'
    if policy.evicts and not all(c.evicts for c in caches):
        raise SessionError("the caches of this artifact do not lose rows", f"cache policy {policy}", hint)
    found = {c.select for c in caches} - {""}
    if policy.selects and found != {policy.selects}:
        message = f"this artifact selects {' and '.join(sorted(found)) or 'no blocks'}, not {policy.selects}"
        raise SessionError(message, f"cache policy {policy}", hint)
    if policy.reads and not all(c.types[KEYS] and c.types[VALUES] for c in caches):
        raise SessionError(PACKED, f"cache policy {policy}", UNPACKED)
    return PolicyCaches(native, CacheManager(policy, all(c.observes for c in caches)))
