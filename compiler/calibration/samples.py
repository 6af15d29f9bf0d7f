"""Calibration samples: a text file, a tensor file of token ids, or a Python iterable, as graph inputs.

In: a source, the module, the model's folder for its tokenizer. Out: samples of equal length, each the inputs
of the graph by name. Independent of solvers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Graph, Module
from tilewright.ir.ops.base import Array
from tilewright.user_files import read_npy, read_text

Sample = Mapping[str, Array]


@dataclass(frozen=True)
class SampleSize:
    """At most `count` samples of `length` tokens."""

    count: int = 128
    length: int = 512


def samples_of(source: object, module: Module, folder: Path | None, size: SampleSize) -> list[Sample]:
    """`source`: the path of a UTF-8 text or of an .npy or .safetensors file of token ids, or an iterable of
    samples: ids, or mappings, tuples or single arrays of the graph's inputs. RefusedError names what was
    found and what is needed."""
    graph = module.graphs[0]
    if isinstance(source, str | Path):
        path = Path(source)
        return cut(
            _known(file_ids(path, folder), module, str(path)), graph, _fitting(size, module), str(path)
        )
    if not isinstance(source, Iterable):
        raise RefusedError(
            f"cannot calibrate on {type(source).__name__}",
            "calibrate",
            "pass a path or an iterable of samples",
        )
    items = [x for x, _ in zip(source, range(size.count), strict=False)]
    if not items:
        raise RefusedError("the iterable yields no samples", "calibrate", "pass at least one sample")
    if _takes_ids(graph) and not isinstance(items[0], Mapping):
        ids = _known(np.concatenate([_ids(x, "calibrate") for x in items]), module, "calibrate")
        return cut(ids, graph, _fitting(size, module), "calibrate")
    return [_inputs(x, graph) for x in items]


def _fitting(size: SampleSize, module: Module) -> SampleSize:
    context = dict(module.meta).get("context")
    return SampleSize(size.count, min(size.length, context)) if isinstance(context, int) and context else size


def _known(ids: NDArray[np.int64], module: Module, where: str) -> NDArray[np.int64]:
    """RefusedError if an id is none of the vocabulary's."""
    vocab = dict(module.meta).get("vocab")
    if isinstance(vocab, int) and ids.size and (ids.max() >= vocab or ids.min() < 0):
        odd = int(ids.max() if ids.max() >= vocab else ids.min())
        raise RefusedError(
            f"holds id {odd}, the model's largest id is {vocab - 1}",
            where,
            "encode the text with this model's tokenizer",
        )
    return ids


#: what graphs of token ids are called with: language models, and encoders of texts
IDS, ENCODER = {"ids", "pos"}, {"input_ids", "attention_mask", "token_type_ids"}


def _takes_ids(graph: Graph) -> bool:
    names = {v.name for v in graph.inputs}
    return ("ids" in names and names <= IDS) or ("input_ids" in names and names <= ENCODER)


def cut(ids: NDArray[np.int64], graph: Graph, size: SampleSize, where: str) -> list[Sample]:
    """Windows of ids side by side, as inputs."""
    if not _takes_ids(graph):
        names = ", ".join(v.name for v in graph.inputs)
        raise RefusedError(
            f"the model takes {names}, not token ids",
            where,
            "calibrate from Python, with an iterable of inputs",
        )
    if len(ids) < size.length:
        hint = (
            f"pass a longer text, or use samples of at most {len(ids)} tokens"
            if len(ids) > 1
            else "pass a longer text"
        )
        raise RefusedError(f"found {len(ids)} tokens, expected at least {size.length}", where, hint)
    count = min(len(ids) // size.length, size.count)
    rows = ids[: count * size.length].reshape(count, size.length)
    other = {"pos": np.arange(size.length), "attention_mask": np.ones(size.length),
             "token_type_ids": np.zeros(size.length)}  # fmt: skip
    kinds = {v.name: np.int64 if v.type.dtype == "i64" else np.int32 for v in graph.inputs}
    return [{n: other.get(n, row)[None].astype(kind) for n, kind in kinds.items()} for row in rows]


def file_ids(path: Path, folder: Path | None) -> NDArray[np.int64]:
    """Token ids in a file."""
    if path.suffix == ".npy":
        return _ids(read_npy(path, "an .npy file of token ids"), str(path))
    if path.suffix == ".safetensors":
        return _safetensors_ids(path)
    return _text_ids(path, folder)


def _safetensors_ids(path: Path) -> NDArray[np.int64]:
    from tilewright.ir.weights.safetensors import SafeTensors

    file = SafeTensors(path)
    named: list[str] = [n for n in ("input_ids", "ids") if n in file.entries]
    names = named or list(file.entries)
    if len(names) != 1:
        raise RefusedError(
            f"holds {', '.join(names) or 'nothing'}; it is unclear which are the token ids",
            str(path),
            "name the tensor input_ids",
        )
    return _ids(file.raw(names[0])[0], f"{path}: {names[0]}")


def _text_ids(path: Path, folder: Path | None) -> NDArray[np.int64]:
    from tokenizers import Tokenizer

    text = read_text(path, "a text, or token ids in an .npy or .safetensors file")
    tokenizer = None if folder is None else folder / "tokenizer.json"
    if tokenizer is None or not tokenizer.is_file():
        raise RefusedError(
            "a text needs the model's tokenizer.json, which is missing",
            str(path),
            "pass ids in an .npy file",
        )
    if not text.strip():
        raise RefusedError(
            "the file contains no text: found 0 tokens",
            str(path),
            "pass some pages of text similar to what the model will process",
        )
    return np.asarray(Tokenizer.from_file(str(tokenizer)).encode(text).ids, np.int64)


def _ids(x: object, where: str) -> NDArray[np.int64]:
    a = np.asarray(x)
    if not np.issubdtype(a.dtype, np.integer):
        raise RefusedError(f"expected token ids, got {a.dtype}", where, "pass an integer array")
    return a.reshape(-1).astype(np.int64)


def _inputs(x: object, graph: Graph) -> Sample:
    names = [v.name for v in graph.inputs]
    if isinstance(x, Mapping):
        return {str(k): np.asarray(v) for k, v in x.items()}
    parts: Sequence[object] = x if isinstance(x, tuple | list) else (x,)
    if len(parts) != len(names):
        raise RefusedError(
            f"a sample holds {len(parts)} inputs, expected {len(names)}: {', '.join(names)}", "calibrate"
        )
    return {n: np.asarray(p) for n, p in zip(names, parts, strict=True)}
