"""`Model.run`: texts and images through the graphs of an encoder or vision model, to answers.

In: what the manifest says of the task, a model. Out: one answer per text or image. What the answers look like
is in `answers`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.arguments import integer
from tilewright.runtime.errors import ArtifactError, SessionError
from tilewright.runtime.json_fields import kind
from tilewright.runtime.stateless import StatelessGraph
from tilewright.runtime.task_entry import TaskEntry
from tilewright.runtime.tasks import answers
from tilewright.runtime.tasks.images import prepared
from tilewright.runtime.tasks.inputs import BATCH, Texts, Tokens
from tilewright.runtime.text import TextCodec

Array = NDArray[np.generic]
#: labels, fillings or spans of one answer, unless the caller says otherwise
TOP = 5


class Graphs(Protocol):
    """What a task needs of a model."""

    def graph(self, name: str) -> StatelessGraph: ...
    @property
    def codec(self) -> TextCodec: ...


class TaskRunner:
    """One model's task, ready to answer. Threads take turns at its graphs."""

    def __init__(self, model: Graphs, entry: TaskEntry) -> None:
        self.model, self.entry, self.turn = model, entry, Lock()

    def run(self, text: object, text_pair: object, image: object, top: int, truncate: bool) -> Any:
        """As `Model.run` says."""
        top = integer(top, "top", "run", 1)
        texts, images = _several(text, "text", _is_text), _several(image, "image", _is_image)
        pairs = _several(text_pair, "text_pair", _is_text)
        self._check(texts, pairs, images)
        single = isinstance(text, str) or (text is None and not isinstance(image, list | tuple))
        if texts is not None and images is not None:
            found = self._compared(images, texts, top, truncate)
            return found if isinstance(image, list | tuple) else found[0]
        found = (
            self._of_texts(texts, pairs, top, truncate) if texts is not None else self._of_images(images, top)
        )
        return found[0] if single else found

    def _check(self, texts: list[Any] | None, pairs: list[Any] | None, images: list[Any] | None) -> None:
        """Raises SessionError for inputs that this task does not take, naming those that it does."""
        takes = [name for name, has in (("text", self.entry.text), ("image", self.entry.image)) if has]
        wanted = f"this model does {self.entry.name}: it takes {' and '.join(takes)}"
        for name, given in (("text", texts), ("image", images)):
            if given is not None and name not in takes:
                raise SessionError(f"{name} is not an input of this model", "run", wanted)
        if texts is None and images is None:
            raise SessionError("no input", "run", wanted)
        if pairs is not None and (texts is None or len(pairs) != len(texts)):
            got = f"{len(texts or ())} and {len(pairs)}"
            raise SessionError(f"text_pair: expected one for each text, got {got}", "run")
        if self.entry.name == "question-answering" and pairs is None:
            hint = "pass the question as text and the passage that answers it as text_pair (--text-pair)"
            raise SessionError("no passage to find the answer in", "run", hint)

    # -------------------------------------------------------------- texts
    @cached_property
    def texts(self) -> Texts:
        """ArtifactError if the artifact has no tokenizer."""
        assert self.entry.text is not None
        graph = self.model.graph(self.entry.text.graph)
        names = tuple(t.name for t in graph.entry.inputs)
        length = (graph.entry.inputs[0].shape if graph.entry.inputs else ())[-1:]
        least = next((lo for name, lo, _ in graph.ranges if (name,) == length), 1)
        return Texts(self.model.codec, self.entry.text, names, least)

    def _of_texts(
        self, texts: Sequence[str], pairs: Sequence[str] | None, top: int, truncate: bool
    ) -> list[Any]:
        rows = self.texts.tokens(texts, pairs, truncate)
        results = self._text_results(rows)
        contexts = pairs or [""] * len(texts)
        return [self._answer(r, t, c, top) for r, t, c in zip(results, rows, contexts, strict=True)]

    def _text_results(self, rows: Sequence[Tokens]) -> list[dict[str, Array]]:
        """The graph's results for each text."""
        assert self.entry.text is not None
        graph = self.model.graph(self.entry.text.graph)
        out: list[dict[str, Array]] = [{} for _ in rows]
        for places, arrays in self.texts.batches(rows):
            with self.turn:
                results = graph.run(arrays)
            for n, place in enumerate(places):
                out[place] = _row(results, n)
        return out

    def _answer(self, found: Mapping[str, Array], tokens: Tokens, context: str, top: int) -> Any:
        name, labels = self.entry.name, self.entry.labels
        if name == "fill-mask":
            return answers.fillings(_of(found, "logits"), tokens, self.texts, top)
        if name == "token-classification":
            return answers.entities(self._logits(found), labels, tokens, self.texts)
        if name == "question-answering":
            start, end = (_of(found, key) for key in ("start_logits", "end_logits"))
            return answers.spans(start, end, tokens, context, top)
        if name == "text-classification":
            return answers.labelled(self._logits(found), labels, self.entry.scores, top)
        whole = _of(found, VECTORS.get(name, "vectors"))
        return whole[: len(tokens.ids)] if name == "feature-extraction" else whole

    # -------------------------------------------------------------- images
    def _of_images(self, images: Sequence[Any] | None, top: int) -> list[Any]:
        found = self._image_results(images or ())
        if self.entry.name == "image-classification":
            return [
                answers.labelled(self._logits(r), self.entry.labels, self.entry.scores, top) for r in found
            ]
        return [_of(r, VECTORS.get(self.entry.name, "vectors")) for r in found]

    def _image_results(self, images: Sequence[Any]) -> list[dict[str, Array]]:
        """The graph's results for each image."""
        entry = self.entry.image
        assert entry is not None
        graph = self.model.graph(entry.graph)
        out: list[dict[str, Array]] = []
        for at in range(0, len(images), BATCH):
            some = np.stack([prepared(x, entry) for x in images[at : at + BATCH]])
            with self.turn:
                results = graph.run({only_input(graph): some})
            out += [_row(results, n) for n in range(len(some))]
        return out

    def _compared(self, images: Sequence[Any], texts: Sequence[str], top: int, truncate: bool) -> list[Any]:
        """For each image, the texts that describe it best."""
        seen = self._image_results(images)
        read = self._text_results(self.texts.tokens(texts, None, truncate))
        words, scale = np.stack([_of(r, "vectors") for r in read]), float(_of(read[0], "scale"))
        return [answers.similarities(_of(r, "vectors"), words, scale, texts, top) for r in seen]

    def _logits(self, found: Mapping[str, Array]) -> NDArray[np.float32]:
        logits = _of(found, "logits")
        if logits.shape[-1] != len(self.entry.labels):
            message = f"{len(self.entry.labels)} labels for {logits.shape[-1]} logits"
            raise ArtifactError(message, "manifest.json: task", "compile the model again")
        return logits


#: the graph's result that is the answer, where it is not called `vectors`
VECTORS = {"feature-extraction": "last_hidden_state", "image-feature-extraction": "last_hidden_state"}


def only_input(graph: StatelessGraph) -> str:
    """The name of what a graph of images takes."""
    names = [t.name for t in graph.entry.inputs]
    if len(names) != 1:
        message = f"the graph of images takes {', '.join(names) or 'nothing'}"
        raise ArtifactError(message, "manifest.json: task", "compile the model again")
    return names[0]


def _row(results: Mapping[str, Array], n: int) -> dict[str, Array]:
    """One input's part; a number holds for all of them."""
    return {name: x[n] if x.ndim else x for name, x in results.items()}


def _of(found: Mapping[str, Array], name: str) -> NDArray[np.float32]:
    if name not in found:
        raise ArtifactError(
            f"the graph has no result {name!r}", "manifest.json: task", "compile the model again"
        )
    return found[name].astype(np.float32)


def _is_text(x: object) -> bool:
    return isinstance(x, str)


def _is_image(x: object) -> bool:
    return not isinstance(x, bytes | Mapping)


def _several(given: object, name: str, fits: Callable[[object], bool]) -> list[Any] | None:
    """One input or several as a list, which is not empty; None if there is none."""
    if given is None:
        return None
    items = list(given) if isinstance(given, list | tuple) else [given]
    if not items or not all(map(fits, items)):
        wanted = "a string or strings" if name != "image" else "an image or images"
        raise SessionError(f"{name}: expected {wanted}, got {kind(given)}", "run")
    return [os.fspath(x) if isinstance(x, os.PathLike) else x for x in items]
