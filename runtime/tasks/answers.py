"""What a graph's results mean: logits to labels, entities, fillings and spans, as in transformers.

In: arrays of one text or image, its tokens, labels. Out: plain dicts, lists and numbers that JSON can hold.
Runs no graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.errors import SessionError
from tilewright.runtime.tasks.inputs import Texts, Tokens

Array = NDArray[np.float32]
Answer = dict[str, Any]
#: most tokens of an answer to a question
LONGEST_ANSWER = 15


def scores_of(logits: Array, how: str) -> Array:
    """Probabilities over the last axis; `how`: softmax, sigmoid, or none."""
    if how == "none":
        return logits
    if how == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-np.clip(logits, -80, 80))), np.float32)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True), np.float32)


def best(scores: Array, top: int) -> list[int]:
    """Places of the `top` highest scores, the highest first."""
    return [int(n) for n in np.argsort(-scores, kind="stable")[:top]]


def labelled(logits: Array, labels: Sequence[str], how: str, top: int) -> list[Answer]:
    """The most likely labels: `label`, `score`."""
    scores = scores_of(logits, how)
    return [{"label": labels[n], "score": float(scores[n])} for n in best(scores, top)]


# ------------------------------------------------------------------ tokens
def entities(logits: Array, labels: Sequence[str], tokens: Tokens, texts: Texts) -> list[Answer]:
    """Neighbouring tokens of one entity together: `entity_group`, `score` (their mean), `word`, `start` and
    `end` in the text. Tokens labelled O are left out."""
    scores = scores_of(logits[: len(tokens.ids)], "softmax")
    groups: list[list[int]] = []
    names = [labels[int(n)] for n in scores.argmax(-1)]
    for n, special in enumerate(tokens.special):
        if special:
            continue
        if groups and _tag(names[n]) == _tag(names[groups[-1][-1]]) and not names[n].startswith("B-"):
            groups[-1].append(n)
        else:
            groups.append([n])
    kept = [g for g in groups if names[g[0]].split("-", 1)[-1] != "O"]
    return [_entity(g, names[g[0]], scores.max(-1), tokens, texts) for g in kept]


def _tag(name: str) -> str:
    return name[2:] if name[:2] in ("B-", "I-") else name


def _entity(group: Sequence[int], name: str, scores: Array, tokens: Tokens, texts: Texts) -> Answer:
    decoder = texts.codec.tokenizer.decoder
    words = [tokens.words[n] for n in group]
    word = str(decoder.decode(words)) if decoder is not None else " ".join(words)
    start, end = tokens.offsets[group[0]][0], tokens.offsets[group[-1]][1]
    score = float(np.mean([scores[n] for n in group]))
    tag = name.split("-", 1)[-1]
    return {"entity_group": tag, "score": score, "word": word, "start": start, "end": end}


def fillings(logits: Array, tokens: Tokens, texts: Texts, top: int) -> list[Answer] | list[list[Answer]]:
    """The most likely tokens at the mask: `score`, `token`, `token_str`, `sequence`. Of several masks, a list
    for each."""
    mask = texts.special("mask_token")
    places = [n for n, i in enumerate(tokens.ids) if i == mask]
    if not places:
        said = texts.codec.special.get("mask_token", "the mask token")
        raise SessionError("no mask to fill", f"text {tokens.text[:40]!r}", f"write {said} in the text")
    rows = [_filled(scores_of(logits[n], "softmax"), n, tokens, texts, top, len(places) == 1) for n in places]
    return rows[0] if len(rows) == 1 else rows


def _filled(scores: Array, at: int, tokens: Tokens, texts: Texts, top: int, alone: bool) -> list[Answer]:
    out = []
    for token in best(scores, top):
        ids = [token if n == at else i for n, i in enumerate(tokens.ids)]
        whole = texts.codec.decode([i for i in ids if i != texts.pad], skip_special=alone)
        said = texts.codec.decode([token], skip_special=False)
        out.append({"score": float(scores[token]), "token": token, "token_str": said, "sequence": whole})
    return out


def spans(start: Array, end: Array, tokens: Tokens, context: str, top: int) -> list[Answer]:
    """The most likely answers in `context`, the second text: `answer`, `score`, `start` and `end` in it."""
    inside = np.asarray([p == 1 for p in tokens.parts])
    n = len(inside)
    first, last = (scores_of(np.where(inside, x[:n], -np.inf), "softmax") for x in (start, end))
    joint = np.triu(np.outer(first, last)) - np.triu(np.outer(first, last), LONGEST_ANSWER)
    found = [divmod(i, n) for i in best(joint.reshape(-1), top)]
    places = [(tokens.offsets[a][0], tokens.offsets[b][1], float(joint[a, b])) for a, b in found]
    return [{"score": p, "start": a, "end": b, "answer": context[a:b]} for a, b, p in places if p > 0]


# ------------------------------------------------------------------ images against texts
def similarities(image: Array, texts: Array, scale: float, labels: Sequence[str], top: int) -> list[Answer]:
    """How well each text describes one image; both as vectors of length 1."""
    return labelled(scale * (texts @ image), labels, "softmax", top)


def plain(values: Mapping[str, Any] | Sequence[Any] | Any) -> Any:
    """Answers with arrays as lists, for JSON."""
    if isinstance(values, Mapping):
        return {k: plain(v) for k, v in values.items()}
    if isinstance(values, list | tuple):
        return [plain(v) for v in values]
    return values.tolist() if isinstance(values, np.ndarray | np.generic) else values
