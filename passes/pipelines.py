"""The pipelines as data: which passes run, in which order, for which kind of model.

In: options of a recipe. Out: pipeline text, which the driver parses and whose order it checks. The order
stands here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tilewright.ir.text.attributes import attrs_text

#: the captured graph in the semantic ops that every pipeline starts from
RECOGNISED: tuple[str, ...] = ("canonicalize", "recognise", "canonicalize")

#: the same with its weights under the names that they keep
MERGED: tuple[str, ...] = (*RECOGNISED, "merge-linears")

#: a decoder: one step over a mix of tokens, with caches
DECODER: tuple[str, ...] = (
    *MERGED, "encode-weights", "flatten-tokens", "incrementalize", "select-rows", "canonicalize",
    "quantize-activations", "canonicalize", "fuse",
)  # fmt: skip

#: any other module: its own inputs and shapes
PLAIN: tuple[str, ...] = (
    *RECOGNISED, "channels-last", "canonicalize", "fold-scales", "merge-linears", "encode-weights",
    "decompose-attend", "canonicalize", "quantize-activations", "canonicalize", "fuse",
)  # fmt: skip


def calibrating(passes: Sequence[str]) -> tuple[str, ...]:
    """The same, with weights solved on samples: those run whole sequences, while the graph is not yet a
    step."""
    return _before(("flatten-tokens", "decompose-attend"), ("calibrate",), passes)


def rotating(passes: Sequence[str]) -> tuple[str, ...]:
    """The same, with the residual stream rotated while the graph still is whole, and online rotations spelled
    out at the end."""
    out = _before(("merge-linears",), ("rotate",), passes)
    if "quantize-activations" not in out:
        return out
    at = out.index("quantize-activations") + 1
    return (*out[:at], "expand-fwht", *out[at:])


def reducing(passes: Sequence[str]) -> tuple[str, ...]:
    """The same over fewer tokens: cut before weights are encoded and samples run, so that both see the model
    as it will be; what chooses tokens is spelled out where attention is."""
    out = _before(("encode-weights",), ("reduce-tokens",), passes)
    return _before(("decompose-attend",), ("expand-tokens",), out)


def packing(passes: Sequence[str]) -> tuple[str, ...]:
    """The same over the tokens that attention masks keep, packed."""
    return _before(("encode-weights",), ("pack-tokens", "canonicalize"), passes)


def _before(names: Sequence[str], new: Sequence[str], passes: Sequence[str]) -> tuple[str, ...]:
    """New passes before the first that has one of the names."""
    at = min(passes.index(n) for n in names if n in passes)
    return (*passes[:at], *new, *passes[at:])


#: what follows the graph passes for every kind: Graph IR to placed Tile IR
LOWERING: tuple[str, ...] = ("lower", "expand-encodings", "plan-memory")

PIPELINES: Mapping[str, tuple[str, ...]] = {"decoder": DECODER, "plain": PLAIN}

#: what holds after a whole compile, so that a backend can render it and the runtime serve it
_WHOLE = frozenset({"program", "expanded", "placed"})
ENDS: Mapping[str, frozenset[str]] = {"decoder": _WHOLE | {"row-selected"}, "plain": _WHOLE}

#: what makes a program of a text that `exec` runs: of graphs as captured, and of graphs in regions
RUNNABLE: tuple[str, ...] = ("canonicalize", "encode-weights", "fuse", *LOWERING)

PassOptions = Mapping[str, Mapping[str, object]]


def pipeline_text(passes: Sequence[str], options: PassOptions | None = None) -> str:
    """`canonicalize, encode-weights{weights="bf16"}, …`: options by pass name, those of absent passes left
    out."""
    given = options or {}
    return ", ".join(name + attrs_text(sorted(given.get(name, {}).items())) for name in passes)
