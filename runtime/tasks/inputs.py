"""Texts to the token ids that a graph takes: tokenized, and batches of one length.

In: texts or pairs of texts, the tokenizer of an artifact. Out: arrays by input name, and the tokens' places
in the texts. A text that is too long is an error unless its end may be cut off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.arguments import utf8
from tilewright.runtime.errors import ArtifactError, SessionError
from tilewright.runtime.task_entry import TextEntry
from tilewright.runtime.text import TextCodec

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Arrays = Mapping[str, NDArray[np.int64]]
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
    """The tokenizer, what the graph takes (`inputs`: names; `least`: tokens in a row), and its limits."""

    codec: TextCodec
    entry: TextEntry
    inputs: tuple[str, ...]
    least: int = 1

    def tokens(self, texts: Sequence[str], pairs: Sequence[str] | None, truncate: bool) -> list[Tokens]:
        """Raises SessionError for a text of no tokens or, unless `truncate`, of too many."""
        tokenizer = self._cutting if truncate else self.codec.tokenizer
        return [self._one(tokenizer, t, pairs[n] if pairs else None) for n, t in enumerate(texts)]

    @cached_property
    def _cutting(self) -> Tokenizer:
        """A tokenizer of its own that cuts texts off: other threads use the one that does not."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.codec.tokenizer.to_str())
        tokenizer.enable_truncation(self.entry.longest)
        return tokenizer

    def _one(self, tokenizer: Tokenizer, text: str, pair: str | None) -> Tokens:
        given = (utf8(text, "text"),) if pair is None else (utf8(text, "text"), utf8(pair, "text_pair"))
        out = Tokens.of(text, tokenizer.encode(*given))
        where = f"text {text[:40]!r}" + (" …" if len(text) > 40 else "")
        if not out.ids:
            raise SessionError("the text has no tokens", where, "pass a text that is not empty")
        if len(out.ids) > self.entry.longest:
            message = f"{len(out.ids)} tokens, the model takes {self.entry.longest}"
            raise SessionError(message, where, "shorten it, or cut off its end with truncate (--truncate)")
        return out

    def batches(self, rows: Sequence[Tokens]) -> Iterator[tuple[list[int], Arrays]]:
        """Texts of one length together, at most BATCH: their places among `rows`, and the arrays that they
        become. Without padding an answer never depends on the other texts, whatever the model's code does
        beyond a text's end."""
        by_length: dict[int, list[int]] = {}
        for n, r in enumerate(rows):
            by_length.setdefault(len(r.ids), []).append(n)
        for places in by_length.values():
            for at in range(0, len(places), BATCH):
                some = places[at : at + BATCH]
                yield some, self._arrays([rows[n] for n in some])

    def _arrays(self, rows: Sequence[Tokens]) -> Arrays:
        width = max(self.least, len(rows[0].ids))
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
