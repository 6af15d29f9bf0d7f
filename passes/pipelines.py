"""The pipelines as data: which passes run, in which order, for which kind of model.

In: options of a recipe. Out: pipeline text, which the driver parses. The order stands here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tilewright.ir.text.attributes import attrs_text

#: a decoder: one step over a mix of tokens, with caches
DECODER: tuple[str, ...] = (
    "canonicalize", "recognise", "canonicalize", "flatten-tokens", "incrementalize", "select-rows", "canonicalize",
    "merge-linears", "encode-weights", "quantize-activations", "canonicalize", "fuse",
)  # fmt: skip

#: any other module: its own inputs and shapes
PLAIN: tuple[str, ...] = (
    "canonicalize", "recognise", "canonicalize", "decompose-attend", "canonicalize", "merge-linears", "encode-weights",
    "quantize-activations", "canonicalize", "fuse",
)  # fmt: skip

#: what calibration runs: the captured graph with the weights that the others will have, in the same names
CALIBRATION: tuple[str, ...] = (
    "canonicalize",
    "recognise",
    "canonicalize",
    "merge-linears",
    "encode-weights",
)


def equalizing(passes: Sequence[str]) -> tuple[str, ...]:
    """The same, with the weights that calibration rescaled."""
    at = passes.index("encode-weights")
    return (*passes[:at], "equalize", *passes[at:])


def rotating(passes: Sequence[str]) -> tuple[str, ...]:
    """The same, with the residual stream turned while the graph still is whole, and online rotations spelled
    out at the end."""
    at = passes.index("flatten-tokens" if "flatten-tokens" in passes else "merge-linears")
    out = (*passes[:at], "rotate", *passes[at:])
    if "quantize-activations" not in out:
        return out
    at = out.index("quantize-activations") + 1
    return (*out[:at], "expand-fwht", *out[at:])


#: what follows the graph passes for every kind: Graph IR to placed Tile IR
LOWERING: tuple[str, ...] = ("lower", "expand-encodings", "plan-memory")

PIPELINES: Mapping[str, tuple[str, ...]] = {"decoder": DECODER, "plain": PLAIN}

PassOptions = Mapping[str, Mapping[str, object]]


def pipeline_text(passes: Sequence[str], options: PassOptions | None = None) -> str:
    """`canonicalize, encode-weights{weights="bf16"}, …`: options by pass name, those of absent passes left
    out."""
    given = options or {}
    return ", ".join(name + attrs_text(sorted(given.get(name, {}).items())) for name in passes)
