"""Generation: one strategy over `Session.step`. Prompt in, text out piece by piece.

In: a session, ids, what to stop at. Out: ids, text and the reason for the end. Independent of files or
libraries.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tilewright.runtime.errors import SessionError
from tilewright.runtime.prefixes import common
from tilewright.runtime.sampling import Sampling, choose
from tilewright.runtime.session import Session
from tilewright.runtime.text import Streamer, TextCodec


@dataclass
class Generation:
    """What was generated. `finish`: `eos`, `stop`, `length`, `context`, or `stopped` (by the caller or
    Ctrl-C). `reused`: tokens of the prompt that a prompt cache held."""

    prompt_ids: list[int] = field(repr=False)
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = "stopped"
    prefill_s: float = 0.0
    decode_s: float = 0.0
    reused: int = 0

    def __str__(self) -> str:
        return self.text

    @property
    def decode_tok_s(self) -> float:
        return max(len(self.ids) - 1, 0) / self.decode_s if self.decode_s else 0.0


@dataclass(frozen=True)
class Request:
    """`eos`: ids that end the text (not part of it). `stop`: strings that end it (not part of it)."""

    ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    eos: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()


class TextStream:
    """Iterates over pieces of text; `result` holds everything so far at any time."""

    def __init__(
        self, session: Session, request: Request, codec: TextCodec | None, prompt_cache: Path | None = None
    ) -> None:
        """`prompt_cache`: a file of a sequence, whose beginning is not read again; at the end it holds this
        one. It need not exist."""
        self.result = Generation(list(request.ids))
        self._pieces = _generate(session, request, codec, self.result, prompt_cache)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End the generation here and give its memory back."""
        self._pieces.close()  # type: ignore[attr-defined]


def check_request(r: Request, context: int) -> None:
    """Raises SessionError for an empty prompt or one that leaves no room in the context."""
    if not r.ids:
        raise SessionError("the prompt is empty", "prompt", "pass at least one token")
    if len(r.ids) >= context:
        hint = f"shorten the prompt to at most {context - 1} tokens"
        raise SessionError(f"the prompt has {len(r.ids)} tokens, the context holds {context}", "prompt", hint)


def _generate(
    session: Session, r: Request, codec: TextCodec | None, out: Generation, prompt_cache: Path | None
) -> Iterator[str]:
    seq = _start(session, r, prompt_cache, out)
    streamer = Streamer(codec, r.ids, r.stop) if codec else None
    try:
        for token in _tokens(session, seq, r, out):
            if token in r.eos:
                out.finish = "eos"
                break
            out.ids.append(token)
            piece = streamer.push(token) if streamer else ""
            out.text += piece
            if piece:
                yield piece
            if streamer and streamer.stopped:
                out.finish = "stop"
                return
    finally:
        tail = streamer.finish() if streamer and not streamer.stopped else ""
        out.text += tail
        try:
            if prompt_cache is not None:
                session.save(seq, prompt_cache)
        finally:
            session.close()
    if streamer and streamer.stopped:
        out.finish = "stop"
    if tail:
        yield tail


def _start(session: Session, r: Request, prompt_cache: Path | None, out: Generation) -> int:
    """A sequence with as much of the prompt as the file holds. Of a sequence whose caches have lost rows only
    all can be used: what went depended on later tokens. One that keeps exact rows of recent tokens can be cut
    back only a little."""
    if prompt_cache is None or not prompt_cache.exists():
        return session.add()
    seq = session.load(prompt_cache)
    held = session.ids(seq)
    same = min(common(held, r.ids), len(r.ids) - 1)  # the last token's logits are needed
    if same < len(held) and (session.evicted(seq) or same < session.least(seq)):
        same = 0
    session.truncate(seq, same)
    out.reused = same
    return seq


def _tokens(session: Session, seq: int, r: Request, out: Generation) -> Iterator[int]:
    """Token after token until the length or the context ends it."""
    history = list(r.ids)
    began = time.perf_counter()
    [logits] = session.step([(seq, r.ids[out.reused :], "last")])
    out.prefill_s = time.perf_counter() - began
    began = time.perf_counter()
    for n in range(r.max_new_tokens):
        assert logits is not None
        token = choose(logits[0], history, r.sampling)
        history.append(token)
        out.decode_s = time.perf_counter() - began
        if n + 1 == r.max_new_tokens:
            out.finish = "length"
        elif len(history) > session.library.context:
            out.finish = "context"
        yield token
        if out.finish in ("length", "context"):
            return
        [logits] = session.step([(seq, [token], "last")])


def eos_ids(generation: Mapping[str, object], meta: Mapping[str, object]) -> frozenset[int]:
    """Ids that end a text: the generation config's, else the model's."""
    for found in (generation.get("eos_token_id"), meta.get("eos")):
        ids = found if isinstance(found, list | tuple) else [found]
        if all(type(i) is int for i in ids) and ids:
            return frozenset(int(str(i)) for i in ids)
    return frozenset()


def merged_sampling(generation: Mapping[str, object], given: Mapping[str, float]) -> dict[str, float]:
    """What was requested over what the generation config says. Whoever narrows the choice of tokens wants one
    to be drawn: without a temperature it is the config's, or 1, as where transformers samples."""
    merged = {**default_sampling(generation), **given}
    narrowed = given.get("top_k", 0) != 0 or given.get("top_p", 1) < 1 or given.get("min_p", 0) > 0
    if narrowed and "temperature" not in merged:
        usual = generation.get("temperature")
        merged["temperature"] = (
            usual if isinstance(usual, int | float) and type(usual) is not bool and usual > 0 else 1.0
        )
    return merged


def default_sampling(generation: Mapping[str, object]) -> dict[str, float]:
    """What the generation config asks for; only numbers in range are taken, and sampling only if it says
    do_sample."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    found = {
        k: v for k in names if isinstance(v := generation.get(k), int | float) and not isinstance(v, bool)
    }
    if generation.get("do_sample") is not True:
        found = {k: v for k, v in found.items() if k == "repetition_penalty"}
    elif "temperature" not in found:
        found["temperature"] = 1.0
    return found
