"""`load` and `Model`: an artifact, ready to call and to generate; imports neither PyTorch nor transformers.

In: a path to `model.tw`. Out: logits, text, sessions; for a plain module, its outputs. The sampling, text and
session logic live in their own files; this one joins them.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.arguments import array_of, integer, path_of, real, texts, threads_of
from tilewright.runtime.artifact import Artifact, choose_level, open_artifact, verify_artifact
from tilewright.runtime.cache.policy import CachePolicy
from tilewright.runtime.cache.registry import parse_policy
from tilewright.runtime.cpu import cpu_features
from tilewright.runtime.errors import ArtifactError, SessionError
from tilewright.runtime.evaluate import Forward
from tilewright.runtime.generate import (
    Generation,
    Request,
    TextStream,
    check_request,
    eos_ids,
    merged_sampling,
)
from tilewright.runtime.json_fields import kind
from tilewright.runtime.library import Library
from tilewright.runtime.manifest import WEIGHTS, Manifest
from tilewright.runtime.sampling import Sampling
from tilewright.runtime.session import Session
from tilewright.runtime.stateless import StatelessGraph
from tilewright.runtime.step import check_step
from tilewright.runtime.tasks.runner import TOP, TaskRunner
from tilewright.runtime.text import TextCodec, read_json

REBUILD = "tilewright.artifact.rebuild"
Prompt = str | Sequence[int] | Sequence[Mapping[str, object]]


def load(
    path: str | os.PathLike[str],
    threads: int | None = None,
    rebuild: bool = False,
    level: str | None = None,
    verify: bool = False,
) -> Model:
    """Open an artifact. `threads` None: as many as this process may use. `level`: one of the artifact's
    instruction sets instead of the best. `verify`: hash the weights too. `rebuild`: run libraries built here,
    now, from the artifact's IR instead of those it carries (needs the compiler). Raises ArtifactError:
    damaged, wrong version, wrong CPU."""
    threads, path = threads_of(threads, "load"), path_of(path, "load")
    artifact = verify_artifact(path) if verify else open_artifact(path)
    if rebuild:
        return Model(artifact, _rebuilt(artifact), threads)
    entry = choose_level(artifact, cpu_features(), level)
    return Model(
        artifact, artifact.file(entry.library), threads, artifact.manifest.files[entry.library].sha256
    )


def _rebuilt(artifact: Artifact) -> Path:
    """Through the compiler, found by name: the runtime does not depend on it."""
    from importlib import import_module

    try:
        module = import_module(REBUILD)
    except ImportError as e:
        hint = "pip install 'tilewright[compile]'"
        raise ArtifactError(f"rebuilding needs the compiler ({e})", str(artifact.path), hint) from None
    return Path(module.rebuild(artifact))


class Model:
    """A compiled model. Calling it gives logits (a language model) or the outputs of its graph (any
    other)."""

    def __init__(
        self, artifact: Artifact, library: Path | Library, threads: int | None = None, sha256: str = ""
    ) -> None:
        """`library`: its file, or one that is open already. `sha256`: what the file's bytes must be; empty
        for one that was just built here.
        """
        self.artifact, self.threads = artifact, threads
        self._graphs: dict[str, StatelessGraph] = {}
        if isinstance(library, Path):
            library = Library(library, artifact.path, artifact.manifest.id, sha256)
        self.library = library
        self._check_limits(library.file)

    @property
    def manifest(self) -> Manifest:
        return self.artifact.manifest

    @property
    def level(self) -> str:
        return self.library.level

    @property
    def is_language_model(self) -> bool:
        return self.library.vocab > 0

    @property
    def has_text(self) -> bool:
        """Whether the artifact holds a tokenizer."""
        return "tokenizer.json" in self.manifest.files

    @property
    def identity(self) -> str:
        """What tells this model from any other: how it was compiled, and its weights."""
        weights = self.manifest.files.get(WEIGHTS)
        return f"{self.manifest.id} {weights.sha256 if weights else ''}"

    @cached_property
    def codec(self) -> TextCodec:
        """The tokenizer; ArtifactError if the artifact has none."""
        return TextCodec.of(self.artifact)

    @cached_property
    def generation_config(self) -> Mapping[str, object]:
        return read_json(self.artifact, "generation_config.json")

    def _check_limits(self, file: Path) -> None:
        stated, have = self.manifest.limits, self.library
        if (stated["vocab"], stated["context"], stated["max_tokens"]) != (
            have.vocab,
            have.context,
            have.max_tokens,
        ):
            raise ArtifactError(
                f"the library was compiled for other limits than {stated}",
                str(file),
                "compile the model again",
            )
        if self.manifest.step is not None:
            check_step(self.manifest.step, self.manifest.states, have)

    def policy(self, cache: str | CachePolicy | None = None) -> CachePolicy | None:
        """The cache policy of a session: the one that is asked for, or the one it was compiled with. None:
        caches keep every token."""
        chosen = cache or str(self.manifest.recipe.get("cache") or "")
        return parse_policy(chosen) if chosen else None

    def session(
        self,
        max_sequences: int = 1,
        threads: int | None = None,
        cache: str | CachePolicy | None = None,
        reuse: int = 0,
    ) -> Session:
        """Step-level control over up to `max_sequences` sequences. `cache`: a policy that decides which
        tokens their caches keep, instead of the one that the model was compiled with: `h2o(budget=0.2)`.
        `reuse`: bytes that dropped sequences may take, for later ones that begin alike (`Session.add`)."""
        step = self.manifest.step
        if not self.is_language_model or step is None:
            raise SessionError(
                "this model keeps no state between calls", "session", "call it: model(inputs…)"
            )
        count = integer(max_sequences, "max_sequences", "session", 1, step.sequences)
        threads = threads_of(threads, "session") or self.threads
        return Session(
            self.library,
            count,
            threads,
            step.sequences,
            self.policy(cache),
            self.identity,
            integer(reuse, "reuse", "session", 0),
        )

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """A language model: ids [S] or [B, S] to float32 logits [.., S, columns]. Any other: its inputs in
        order or by name, in the structure it was compiled with, to its results in the module's own (see
        `runtime.structure`)."""
        if not self.is_language_model:
            form = self.stateless_graph.structure
            return form.build(self.stateless_graph.run(form.tensors(args, inputs)))
        if len(args) + len(inputs) != 1:
            raise SessionError(
                f"expected one array of token ids, got {len(args) + len(inputs)} arguments", "model(ids)"
            )
        return self._logits(array_of(args[0] if args else next(iter(inputs.values())), "model(ids)"))

    @cached_property
    def stateless_graph(self) -> StatelessGraph:
        """The first graph of a model that is not a language model: the only one of most."""
        return self.graph(self.manifest.graphs[0].name)

    def graph(self, name: str) -> StatelessGraph:
        """A graph without state by its name, ready to run."""
        if name not in self._graphs:
            entry = next((g for g in self.manifest.graphs if g.name == name), None)
            if entry is None:
                raise ArtifactError(f"there is no graph {name!r}", "manifest.json", "compile the model again")
            alone = len(self.manifest.graphs) == 1
            self._graphs[name] = StatelessGraph(self.library, entry, self.threads, self.manifest.meta, alone)
        return self._graphs[name]

    # ------------------------------------------------------------ encoders and vision models
    @property
    def task(self) -> str:
        """What a model compiled from a folder is for, as transformers' pipelines call it: `text-generation`,
        `text-classification`, `image-classification`, …; empty for a plain module."""
        entry = self.manifest.task
        return "text-generation" if self.is_language_model else entry.name if entry else ""

    def run(
        self,
        text: str | Sequence[str] | None = None,
        *,
        text_pair: str | Sequence[str] | None = None,
        image: object = None,
        top: int = TOP,
        truncate: bool = False,
    ) -> Any:
        """Answers of an encoder or vision model: one for a text or image, a list for a list of them.

        Labels, fillings of a mask and spans are dicts as transformers' pipelines give them, at most `top`;
        vectors are float32 arrays. `image`: a path, a Pillow image, a uint8 array [height, width, channels],
        or a list of these. `text_pair`: the second text of each pair. With texts and images, the texts that
        describe each image best. `truncate`: texts that are too long lose their ends instead of being
        refused. Raises SessionError for inputs that the model does not take."""
        return self._runner.run(text, text_pair, image, top, truncate)

    @cached_property
    def _runner(self) -> TaskRunner:
        if self.manifest.task is not None:
            return TaskRunner(self, self.manifest.task)
        hint = "generate(prompt) continues a text" if self.is_language_model else "call it: model(inputs…)"
        raise SessionError("this model has no task that turns texts or images into answers", "run", hint)

    def _logits(self, ids: NDArray[np.generic]) -> NDArray[np.float32]:
        if ids.ndim not in (1, 2):
            raise SessionError(f"ids: expected shape [S] or [B, S], got {list(ids.shape)}", "model(ids)")
        rows = ids[None] if ids.ndim == 1 else ids
        with self.session(max(len(rows), 1)) as s:
            got = s.step([(s.add(), r, "all") for r in rows])
        out = np.stack([g for g in got if g is not None])
        return out[0] if ids.ndim == 1 else out

    # ------------------------------------------------------------ text
    def prompt_ids(self, prompt: Prompt, template: Mapping[str, object] | None = None) -> list[int]:
        """Ids of a text, of chat messages (through the chat template, with these variables), or ids as they
        are, in a list, an array or a tensor."""
        prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt
        items: list[object] = [] if isinstance(prompt, str) else list(prompt) if _several(prompt) else [None]
        if items and all(isinstance(m, Mapping) for m in items):
            return self.codec.chat([m for m in items if isinstance(m, Mapping)], template)
        if template:
            names, hint = ", ".join(template), "pass messages instead of text or ids"
            raise SessionError(f"{names}: the prompt does not use a chat template", "template", hint)
        if isinstance(prompt, str):
            return self.codec.encode(prompt)
        ids = [int(i) for i in items if isinstance(i, int | np.integer) and not isinstance(i, bool)]
        odd = next((i for i in ids if not 0 <= i < self.library.vocab), None)
        if odd is not None:
            raise SessionError(f"token id {odd}: expected 0 to {self.library.vocab - 1}", "prompt")
        if len(ids) != len(items):
            raise SessionError(
                f"expected text, token ids, or messages with role and content, got {kind(prompt)}", "prompt"
            )
        return ids

    def request(
        self,
        prompt: Prompt,
        max_new_tokens: int = 64,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        template: Mapping[str, object] | None = None,
        **sampling: float | None,
    ) -> Request:
        """The prompt as ids with everything that ends or steers its text. Unset sampling comes from the
        generation config; `template` are variables of the chat template."""
        if not self.is_language_model:
            what = f"does {self.task}" if self.task else "is a plain module"
            hint = "run(text=…, image=…) answers" if self.task else "call it: model(inputs…)"
            raise SessionError(f"this model {what}, and generates no text", "generate", hint)
        given = {k: real(v, k, "generate") for k, v in sampling.items() if v is not None}
        merged = merged_sampling(self.generation_config, given)
        unknown = set(given) - set(Sampling.__dataclass_fields__)
        if unknown:
            raise SessionError(
                f"unknown option {', '.join(sorted(unknown))}",
                "generate",
                f"known: {', '.join(Sampling.__dataclass_fields__)}",
            )
        chosen = secrets.randbits(48) if seed is None else integer(seed, "seed", "generate", 0, (1 << 64) - 1)
        how = replace(Sampling(**merged), seed=chosen)  # type: ignore[arg-type]
        stops, most = (
            texts(stop, "stop", "generate"),
            integer(max_new_tokens, "max_new_tokens", "generate", 1),
        )
        if stops and not self.has_text:
            raise SessionError(
                "stop strings need a tokenizer, and the artifact has none",
                "generate",
                "stop at token ids yourself",
            )
        eos = eos_ids(self.generation_config, self.manifest.meta)
        if self.has_text:
            eos |= self.codec.eos
        r = Request(tuple(self.prompt_ids(prompt, template)), most, how, eos, stops)
        check_request(r, self.library.context)
        return r

    def stream(
        self,
        request: Request,
        cache: str | CachePolicy | None = None,
        prompt_cache: str | os.PathLike[str] | None = None,
    ) -> TextStream:
        """Pieces of text as they come. `prompt_cache`: a file of a sequence, whose beginning is not read
        again; at the end it holds this one."""
        codec = self.codec if self.has_text else None
        file = None if prompt_cache is None else Path(path_of(prompt_cache, "prompt_cache"))
        return TextStream(self.session(1, cache=cache), request, codec, file)

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = 64,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        stream: bool = False,
        template: Mapping[str, object] | None = None,
        cache: str | CachePolicy | None = None,
        prompt_cache: str | os.PathLike[str] | None = None,
    ) -> Generation | TextStream:
        """Continue a prompt (text, token ids, or chat messages). `stream`: an iterator over pieces of text
        instead, whose `result` is the Generation. `template`: variables of the chat template (`tools`,
        `documents`, `add_generation_prompt`, and any other). `cache`: which tokens the KV cache keeps, as for
        `session`; `prompt_cache`: as for `stream`. Without sampling options, and unless the
        generation config says otherwise: greedy; with `top_k`, `top_p` or `min_p` but no temperature: drawn
        at temperature 1, or the generation config's."""
        r = self.request(
            prompt, max_new_tokens, stop, seed, template,
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty,
        )  # fmt: skip
        pieces = self.stream(r, cache, prompt_cache)
        if stream:
            return pieces
        _exhaust(pieces)
        return pieces.result


def in_pieces(model: Model, cache: str | CachePolicy | None, tokens: int) -> Forward:
    """Ids to the logits of every position as `Model.__call__` gives them, where the ids are read in pieces of
    so many tokens, after each of which the cache policy acts."""

    def forward(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        with model.session(1, cache=cache) as s:
            seq = s.add()
            pieces = [ids[at : at + tokens] for at in range(0, len(ids), tokens)]
            found = [s.step([(seq, piece, "all")])[0] for piece in pieces]
        return np.concatenate([x for x in found if x is not None])

    return forward


def _several(prompt: object) -> TypeGuard[Iterable[object]]:
    """Ids or messages, not something else that happens to have parts."""
    return isinstance(prompt, Iterable) and not isinstance(prompt, bytes | Mapping)


def _exhaust(pieces: Iterator[str]) -> None:
    for _ in pieces:
        pass
