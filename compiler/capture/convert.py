"""transformers' weight conversions on lazy tensors: merged experts, fused projections, permutations.

In: a `WeightConverter` and the stored tensors it collects. Out: parameters as `Lazy`. A conversion without an
entry in the table is refused by name. Independent of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tilewright.capture.lazy import Lazy, concat, stack
from tilewright.ir.errors import RefusedError, UnsupportedError

Found = dict[str, list[Lazy]]


@dataclass(frozen=True)
class Situation:
    """What an operation may ask about: the patterns, the parameter's full name, the model."""

    sources: list[str]
    targets: list[str]
    name: str
    model: Any


def apply_converter(
    converter: Any, name: str, found: Mapping[str, list[Lazy]], model: Any
) -> dict[str, Lazy]:
    """The parameters a converter makes of what it collected, by full name."""
    at = Situation(list(converter.source_patterns), list(converter.target_patterns), name, model)
    tensors: Found = {k: list(v) for k, v in found.items()}
    for op in converter.operations:
        kind = type(op).__name__
        if kind not in _TABLE:
            raise UnsupportedError(
                f"weight conversion {kind} of transformers", name, f"known: {', '.join(_TABLE)}"
            )
        tensors = _TABLE[kind](op, tensors, at)
    full = name.replace("*.", "0.") if "*." in name else name
    here = next((k for k in tensors if k in full), None)
    prefix, _, suffix = full.partition(here) if here is not None else ("", "", "")
    return {prefix + k + suffix: _one(v, k) for k, v in tensors.items()}


def _one(tensors: list[Lazy], key: str) -> Lazy:
    if len(tensors) != 1:
        raise RefusedError(
            f"{len(tensors)} tensors for {key!r}, expected one",
            "",
            "the checkpoint mixes tensors of different models",
        )
    return tensors[0]


def _last(at: Situation, source: str) -> str:
    """The key of a one-to-one operation's result: the target if it is the only operation's, the source within
    a chain."""
    return at.targets[0] if len(at.targets) == 1 and len(at.sources) == 1 else source


def _merge(op: Any, found: Found, at: Situation) -> Found:
    return {_last(at, k): [stack(v, op.dim)] for k, v in found.items()}


def _concatenate(op: Any, found: Found, at: Situation) -> Found:
    return {at.targets[0]: [concat([t for s in at.sources for t in found.get(s, [])], op.dim)]}


def _chunk(op: Any, found: Found, at: Situation) -> Found:
    (tensors,) = found.values()
    targets = at.targets
    if op.num_shards_attribute is not None:
        count = getattr(at.model.config.get_text_config(), op.num_shards_attribute)
        targets = [at.targets[0].replace("*", str(n)) for n in range(count)]
    parts = _one(tensors, at.name).chunks(len(targets), op.dim)
    return {t: [p] for t, p in zip(targets, parts, strict=True)}


def _split(op: Any, found: Found, at: Situation) -> Found:
    (tensors,) = found.values()
    whole, start, out = _one(tensors, at.name), 0, dict[str, list[Lazy]]()
    for target in at.targets:
        size = at.model.get_parameter(at.name.replace(at.targets[0], target)).shape[op.dim]
        out[target] = [whole.slice(op.dim, start, start + size)]
        start += size
    return out


def _transpose(op: Any, found: Found, at: Situation) -> Found:
    ((key, tensors),) = found.items()
    x = _one(tensors, key)
    kept = op.check_dims and x.shape == tuple(at.model.get_parameter(at.name).shape)
    return {
        at.targets[0] if len(at.targets) == 1 else at.sources[0]: [x if kept else x.swap(op.dim0, op.dim1)]
    }


def _interleave(op: Any, found: Found, at: Situation) -> Found:
    (tensors,) = found.values()
    x = _one(tensors, at.name)
    size, d = x.shape[op.dim], op.dim
    inner = (2, size // 2) if op.inverse else (size // 2, 2)
    return {
        at.targets[0]: [x.reshape(*x.shape[:d], *inner, *x.shape[d + 1 :]).swap(d, d + 1).reshape(*x.shape)]
    }


def _permute_for_rope(op: Any, found: Found, at: Situation) -> Found:
    config = at.model.config
    config = config if op.subconfig_key is None else getattr(config, op.subconfig_key, config)
    heads = getattr(config, "num_attention_heads", 1)
    out: Found = {}
    for key, tensors in found.items():
        named = op.permute_layer_names is None or any(n in key for n in op.permute_layer_names)
        out[_last(at, key)] = [_permuted(_one(tensors, key), heads, op.inverse)] if named else tensors
    return out


def _permuted(x: Lazy, heads: int, inverse: bool) -> Lazy:
    half = x.shape[0] // heads // 2
    inner = (2, half) if inverse else (half, 2)
    return x.reshape(heads, *inner, *x.shape[1:]).swap(1, 2).reshape(*x.shape)


_TABLE: dict[str, Callable[[Any, Found, Situation], Found]] = {
    "MergeModulelist": _merge,
    "Concatenate": _concatenate,
    "Chunk": _chunk,
    "Split": _split,
    "Transpose": _transpose,
    "Interleave": _interleave,
    "PermuteForRope": _permute_for_rope,
}
