"""Texts to the token ids that a graph takes: tokenized, in batches, padded on the right.

In: texts or pairs of texts, the tokenizer of an artifact. Out: arrays by input name, and the tokens' places
in the texts. A text that is too long is an error unless its end may be cut off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.arguments import utf8
from tilewright.runtime.errors import ArtifactError, SessionError
from tilewright.runtime.task_entry import TextEntry
from tilewright.runtime.text import TextCodec

if TYPE_CHECKING:
    from tokenizers import Encoding

#: texts that run at once; more would take more memory and hardly less time
BATCH = 16


@dataclass(frozen=True)
class Tokens:
    """One text as tokens. `ids` with special tokens; `special`: 1 at those; `offsets`: where each token
    stands in its text; `parts`: 0 or 1, which text of a pair it is from, None for special tokens."""

    text: str
    ids: tuple[int, ...]
    types: tuple[int, ...]
    special: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    parts: tuple[int | None, ...]
    words: tuple[str, ...]

    @staticmethod
    def of(text: str, found: Encoding) -> Tokens:
        listed = (found.ids, found.type_ids, found.special_tokens_mask, found.offsets, found.sequence_ids)
        ids, types, special, offsets, parts = map(tuple, listed)
        return Tokens(text, ids, types, special, offsets, parts, tuple(found.tokens))


@dataclass(frozen=True)
class Texts:
    """The tokenizer, what the graph takes (`inputs`: names), and its limits."""

    codec: TextCodec
    entry: TextEntry
    inputs: tuple[str, ...]

    def tokens(self, texts: Sequence[str], pairs: Sequence[str] | None, truncate: bool) -> list[Tokens]:
        """Raises SessionError for a text of no tokens or, unless `truncate`, of too many."""
        tokenizer = self.codec.tokenizer
        if truncate:
            tokenizer.enable_truncation(self.entry.longest)
        try:
            return [self._one(t, pairs[n] if pairs else None) for n, t in enumerate(texts)]
        finally:
            if truncate:
                tokenizer.no_truncation()

    def _one(self, text: str, pair: str | None) -> Tokens:
        given = (utf8(text, "text"),) if pair is None else (utf8(text, "text"), utf8(pair, "text_pair"))
        out = Tokens.of(text, self.codec.tokenizer.encode(*given))
        where = f"text {text[:40]!r}" + (" …" if len(text) > 40 else "")
        if not out.ids:
            raise SessionError("the text has no tokens", where, "pass a text that is not empty")
        if len(out.ids) > self.entry.longest:
            message = f"{len(out.ids)} tokens, the model takes {self.entry.longest}"
            raise SessionError(message, where, "shorten it, or cut off its end with truncate (--truncate)")
        return out

    def batches(
        self, rows: Sequence[Tokens]
    ) -> Iterator[tuple[Sequence[Tokens], Mapping[str, NDArray[np.int64]]]]:
        """At most BATCH texts at a time, with the arrays that they become."""
        for at in range(0, len(rows), BATCH):
            some = rows[at : at + BATCH]
            yield some, self._arrays(some)

    def _arrays(self, rows: Sequence[Tokens]) -> Mapping[str, NDArray[np.int64]]:
        width = max(len(r.ids) for r in rows)
        ids, mask, types = (np.full((len(rows), width), fill, np.int64) for fill in (self.pad, 0, 0))
        for n, r in enumerate(rows):
            ids[n, : len(r.ids)], mask[n, : len(r.ids)], types[n, : len(r.ids)] = r.ids, 1, r.types
        made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        unknown = [name for name in self.inputs if name not in made]
        if unknown:
            message = f"the graph of texts takes {', '.join(unknown)}"
            raise ArtifactError(message, "manifest.json: task", "compile the model again")
        return {name: made[name] for name in self.inputs}

    @property
    def pad(self) -> int:
        """The tokenizer's own padding token, or the one that the model's config names."""
        found = self.special("pad_token")
        return self.entry.pad if found is None else found

    def special(self, name: str) -> int | None:
        """The id of a special token, `mask_token`."""
        text = self.codec.special.get(name)
        return None if text is None else self.codec.tokenizer.token_to_id(text)
