"""Sessions: sequences with their KV, stepped together in any mix of prompts and single tokens.

In: token ids per sequence. Out: float32 logits. Cuts work above the step's limit into several steps; results
do not depend on the cuts. Independent of text or sampling.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike

from tilewright.runtime.arguments import array_of, integer
from tilewright.runtime.cache.manager import Progress
from tilewright.runtime.cache.native import policy_caches
from tilewright.runtime.cache.policy import CachePolicy
from tilewright.runtime.errors import SessionError
from tilewright.runtime.json_fields import kind
from tilewright.runtime.library import Library, NativeSession
from tilewright.runtime.prefixes import MOST, KeptSequences
from tilewright.runtime.saved import SavedSequence, read_saved
from tilewright.runtime.work import WANT, Item, Logits, chunks, parts_of


class Session:
    """Up to `max_sequences` sequences of at most `context` tokens each; `most` as the artifact says. Use from
    one thread at a time."""

    def __init__(
        self,
        library: Library,
        max_sequences: int = 1,
        threads: int | None = None,
        most: int = (1 << 31) - 1,
        policy: CachePolicy | None = None,
        identity: str = "",
        reuse: int = 0,
    ) -> None:
        """`policy`: which tokens stay in the caches; None: all. `identity`: which model's files of sequences
        can be read. `reuse`: bytes that sequences may take after they are dropped, for later ones that begin
        with the same tokens."""
        integer(max_sequences, "max_sequences", "session", 1, most)
        self.library, self.max_sequences = library, max_sequences
        self.slots = max_sequences + (MOST if reuse else 0)
        self.native = NativeSession(library, self.slots, threads)
        each = library.sequence_bytes / max(library.context, 1)
        self.kept = KeptSequences(reuse, each) if reuse else None
        self._parked: dict[int, Progress] = {}
        self._lengths: dict[int, int] = {}
        self._ids: dict[int, list[int]] = {}
        self.policy, self.identity = policy, identity
        self.caches = None if policy is None else policy_caches(self.native, policy)

    @property
    def lengths(self) -> dict[int, int]:
        """Tokens that each live sequence holds."""
        return dict(self._lengths)

    def add(self, ids: ArrayLike = ()) -> int:
        """A new sequence. Raises SessionError if the session is full. `ids`: what it will be given; if an
        earlier sequence began with the same tokens (`reuse` of the session), it holds as many as it can of
        them, which `lengths` says, and needs only the others."""
        begin = array_of(ids, "add").tolist()
        found = self.kept.find(begin, self._evicts, self.native.least) if self.kept and begin else None
        slot = self._free()
        if found is not None and found[0] in self.kept:  # type: ignore[operator]
            source, length = found
            self.native.fork(source, slot, length)
            self._begin(slot, begin[:length], self._parked.get(source))
        else:
            self._begin(slot, [], None)
        return slot

    @property
    def _evicts(self) -> bool:
        return self.policy is not None and self.policy.evicts

    def _begin(self, slot: int, ids: list[int], progress: Progress | None) -> None:
        self._lengths[slot], self._ids[slot] = len(ids), ids
        if self.caches is not None:
            self.caches.progress[slot] = Progress() if progress is None else progress.copy()

    def _free(self) -> int:
        """A number that no sequence has; kept ones give theirs up."""
        if len(self._lengths) >= self.max_sequences:
            hint = "drop one, or allow more with session(max_sequences=…)"
            raise SessionError(f"all {self.max_sequences} sequences are in use", "add", hint)
        taken = {*self._lengths, *self._parked} if self.kept else set(self._lengths)
        free = next((n for n in range(self.slots) if n not in taken), None)
        return self._forget(self.kept.oldest()) if free is None and self.kept else int(free or 0)

    def _forget(self, seq: int) -> int:
        """Give the memory of a sequence back."""
        self._parked.pop(seq, None)
        self.native.drop(seq)
        return seq

    def fork(self, seq: int) -> int:
        """A new sequence with the same tokens."""
        length = self._length(seq)
        new = self.add()
        try:
            self.native.fork(seq, new, length)
        except SessionError:
            del self._lengths[new], self._ids[new]
            raise
        self._lengths[new], self._ids[new] = length, list(self._ids[seq])
        if self.caches is not None:
            self.caches.progress[new] = self.caches.progress[seq].copy()
        return new

    def drop(self, seq: int) -> None:
        """Forget a sequence and give its memory back, or keep it for later ones (`reuse`)."""
        self._length(seq)
        del self._lengths[seq]
        ids = self._ids.pop(seq)
        if self.kept is None:
            self._forget(seq)
            return
        self._parked[seq] = self.caches.progress[seq] if self.caches is not None else Progress()
        for gone in self.kept.keep(seq, ids):
            self._forget(gone)

    def truncate(self, seq: int, length: int) -> None:
        """Forget the tokens of a sequence from `length` on. SessionError where that needs exact rows that the
        caches no longer keep (`least`)."""
        have = self._length(seq)
        length = integer(length, "length", f"truncate sequence {seq}", 0, have)
        if 0 < length < self.least(seq):
            kept = (
                f"its caches keep exact rows of recent tokens, so it can be cut to {self.least(seq)} or more"
            )
            hint = "fork the sequence before it grows, or drop it and read the tokens again"
            raise SessionError(f"{length} tokens: {kept}", f"truncate sequence {seq}", hint)
        if self.caches is not None:
            self.native.truncate(seq, have, length)
            self.caches.progress[seq].truncate(length)
        self._lengths[seq] = length
        del self._ids[seq][length:]

    def least(self, seq: int) -> int:
        """The least length, other than 0, to which a sequence can be truncated."""
        self._length(seq)
        return self.native.least(seq)

    def evicted(self, seq: int) -> bool:
        """Whether a sequence's caches have lost rows."""
        self._length(seq)
        caches = self.library.caches
        return any(self.native.gone(n, seq, h) for n, c in enumerate(caches) for h in range(c.heads))

    def ids(self, seq: int) -> list[int]:
        """The tokens of a sequence."""
        self._length(seq)
        return list(self._ids[seq])

    # ------------------------------------------------------------ files
    def save(self, seq: int, path: str | os.PathLike[str]) -> None:
        """Write a sequence to a file, from which `load` makes it again. SessionError if it cannot be
        written."""
        length = self._length(seq)
        progress = self.caches.progress[seq] if self.caches is not None else Progress()
        rows, ids = self.native.save(seq, length), np.asarray(self._ids[seq], np.int32)
        policy = str(self.policy or "")
        SavedSequence(self.identity, policy, ids, rows, progress.prompt, progress.memory).write(Path(path))

    def load(self, path: str | os.PathLike[str]) -> int:
        """A new sequence from a file that `save` wrote. SessionError if the file is damaged, or of another
        model or cache policy; then nothing is changed."""
        saved, policy = read_saved(Path(path)), str(self.policy or "")
        if saved.model != self.identity:
            raise SessionError(
                "was saved by another model", str(path), "load it with the model that saved it"
            )
        if saved.policy != policy:
            said, hint = (
                f"was saved under the cache policy {saved.policy or 'none'}",
                f"this session's is {policy or 'none'}",
            )
            raise SessionError(said, str(path), hint)
        if len(saved.ids) > self.library.context:
            raise SessionError(
                f"holds {len(saved.ids)} tokens, the context {self.library.context}", str(path)
            )
        new = self.add()
        try:
            self.native.restore(new, saved.ids, saved.rows)
        except SessionError:
            self.drop(new)
            raise
        length = len(saved.ids)
        self._lengths[new], self._ids[new] = length, saved.ids.tolist()
        if self.caches is not None:
            memory = {k: x.copy() for k, x in saved.memory.items()}
            self.caches.progress[new] = Progress(length, saved.prompt, length, length, memory)
        return new

    def step(self, work: Sequence[tuple[int, ArrayLike, str | bool | None]]) -> list[Logits | None]:
        """Append ids to sequences: items (sequence, ids, want) with want `last` (True), `all` or `none`
        (None, False).

        Gives [1, columns], [len(ids), columns] or None an item. Nothing is changed if an item is wrong."""
        if not isinstance(work, Sequence):
            raise SessionError(f"expected a list of (sequence, ids, want), got {kind(work)}", "step")
        items = [self._item(n, *parts_of(n, w)) for n, w in enumerate(work)]
        if len({i.seq for i in items}) != len(items):
            raise SessionError("a sequence occurs twice in one step", "step", "merge its ids into one item")
        for i in (
            items if self.library.follows else ()
        ):  # factors by length: of the whole item, however it is cut into steps
            self.native.expect(i.seq, self._lengths[i.seq] + len(i.ids))
        if self.caches is not None:
            for i in items:
                self.caches.begin(i.seq, len(i.ids))
        for chunk in chunks(items, self.library.max_tokens):
            self._native_step(chunk)
        return [
            None if i.want == "none" else np.concatenate(i.parts) if len(i.parts) > 1 else i.parts[0]
            for i in items
        ]

    def _item(self, n: int, seq: int, ids: ArrayLike, want: str | bool | None) -> Item:
        where = f"step, item {n}"
        a = array_of(ids, where)
        if a.ndim != 1 or a.size == 0 or a.dtype.kind not in "iu":
            raise SessionError(
                f"ids: expected a non-empty list of integers, got {a.dtype} of shape {a.shape}", where
            )
        if a.min() < 0 or a.max() >= self.library.vocab:
            bad = int(a[(a < 0) | (a >= self.library.vocab)][0])
            raise SessionError(f"token id {bad}: expected 0 to {self.library.vocab - 1}", where)
        have = self._length(seq)
        if have + a.size > self.library.context:
            hint = "shorten the prompt, or compile with a longer --context if the model has one"
            raise SessionError(
                f"{have + a.size} tokens do not fit into a context of {self.library.context}", where, hint
            )
        wanted = "last" if want is True else "none" if want in (None, False) else str(want)
        if wanted not in WANT:
            raise SessionError(f"want: expected one of {', '.join(WANT)}, got {want!r}", where)
        return Item(seq, a.astype(np.int32), wanted)

    def _length(self, seq: int) -> int:
        try:
            return self._lengths[seq]
        except (KeyError, TypeError):  # TypeError: a list, which no sequence is called by
            live = ", ".join(map(str, self._lengths)) or "none"
            raise SessionError(
                f"sequence {seq} is not in this session; live: {live}", "session", "create one with add()"
            ) from None

    def _native_step(self, chunk: list[tuple[Item, int, int]]) -> None:
        ids = np.concatenate([i.ids[lo:hi] for i, lo, hi in chunk])
        pos = np.concatenate(
            [np.arange(hi - lo, dtype=np.int32) + self._lengths[i.seq] for i, lo, hi in chunk]
        ).astype(np.int32)
        seq = np.concatenate([np.full(hi - lo, i.seq, np.int32) for i, lo, hi in chunk])
        starts = np.cumsum([0, *(hi - lo for _, lo, hi in chunk)])
        wanted = [i.rows(lo, hi) for i, lo, hi in chunk]
        rows = np.asarray([int(s) + r for s, rs in zip(starts, wanted, strict=False) for r in rs], np.int32)
        logits = np.empty((len(rows), self.library.columns), np.float32)
        pieces = [(i.seq, hi - lo, self._lengths[i.seq]) for i, lo, hi in chunk]
        if self.caches is not None:
            self.caches.before(pieces)
        self.native.step(ids, pos, seq, rows, logits)
        if self.caches is not None:
            self.caches.after(pieces)
        at = 0
        for (item, lo, hi), rs in zip(chunk, wanted, strict=True):
            self._lengths[item.seq] += hi - lo
            self._ids[item.seq] += item.ids[lo:hi].tolist()
            if len(rs):
                item.parts.append(logits[at : at + len(rs)])
            at += len(rs)

    def close(self) -> None:
        """Give all memory back; the session cannot be used after."""
        self.native.close()
        self._lengths.clear()
        self._ids.clear()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
