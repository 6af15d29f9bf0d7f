"""Where data lies: prefixes of cache slots against the layouts themselves, weights apart, dimensions as C."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import sympy

import tilewright.ir.encodings  # noqa: F401  (registers them)
from tilewright.backends.cpp.expr import render_dim
from tilewright.backends.storage import (
    ALIGN,
    HEADER,
    content_id,
    place_weights,
    state_streams,
    type_bytes,
)
from tilewright.ir.affine import Affine
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.graph.core import Inline, State, Weight
from tilewright.ir.plan.core import Program
from tilewright.ir.types import evaluate_dim, symbol, tensor

ENCODINGS = [
    "f32",
    "bf16",
    "bf16(layout=keys)",
    "bf16(layout=values)",
    "f32(layout=keys)",
    "f16(layout=values)",
]


@pytest.mark.parametrize("text", ENCODINGS)
@pytest.mark.parametrize(("heads", "context", "dim"), [(1, 40, 16), (3, 33, 64), (2, 128, 80)])
def test_the_first_positions_are_a_prefix_of_each_part(text: str, heads: int, context: int, dim: int) -> None:
    state = State("kv.0", heads, dim, dim, parse_encoding(text), parse_encoding(text), context)
    stream, values, *_ = state_streams(state)
    assert (stream.name, values.name) == ("kv.0.k", "kv.0.v")
    [layout] = state.k.layouts((2, heads, context, dim)).values()
    grid = np.meshgrid(np.arange(2), np.arange(heads), np.arange(context), np.arange(dim), indexing="ij")
    at = layout.offsets(grid) // 8
    assert stream.heads * stream.head_bytes <= stream.slot
    assert (at // stream.slot == grid[0]).all()
    inside = at % stream.slot % stream.head_bytes
    assert stream.heads == 1 or (at % stream.slot // stream.head_bytes == grid[1]).all()
    for n in (1, 5, 16, 17, context):
        used = -(-n // stream.block) * stream.block_bytes
        assert (inside[:, :, :n] < used).all() and used <= stream.head_bytes


def test_only_the_prefix_of_a_keys_cache_is_copied() -> None:
    state = State(
        "kv.0", 2, 64, 64, parse_encoding("bf16(layout=keys)"), parse_encoding("bf16(layout=values)"), 1024
    )
    keys, values, *_ = state_streams(state)
    assert (keys.heads, keys.block, keys.block_bytes) == (2, 16, 16 * 64 * 2)
    assert (values.heads, values.block, values.block_bytes) == (2, 2, 2 * 64 * 2)


def test_weights_lie_apart_and_aligned() -> None:
    shapes = [(3,), (16, 64), (100, 96), (1,)]
    encodings = [None, "int4(group=32)", "int8(channel)", "bf16"]
    weights = []
    for n, (shape, text) in enumerate(zip(shapes, encodings, strict=True)):
        encoding = parse_encoding(text) if text else None
        weights.append(
            Weight(f"w{n}", tensor("f32", *shape, encoding=encoding), Inline("f32", (1,), bytes(4)))
        )
    places, total = place_weights(weights)
    end = HEADER
    for p, w in zip(places, weights, strict=True):
        assert p.offset % ALIGN == 0 and p.offset >= end and p.nbytes == type_bytes(w.type)
        end = p.offset + p.nbytes
    assert total >= end and total % ALIGN == 0
    one, two = (Program((), (), tuple(ws), (), ()) for ws in (weights, weights[:-1]))
    assert content_id(one) != content_id(two) and content_id(one) == content_id(one)


T, B = symbol("T"), symbol("B")
DIMS = [
    7, T, T * 2 + 1, T * B, (T + 1) * (B + 2), T**2, sympy.floor(T / 32), sympy.floor((T + 31) / 32),
    sympy.ceiling(T / 16),
    sympy.Max(T, B, 3), sympy.Min(T, 2 * B), sympy.Mod(T, 8),
]  # fmt: skip


@pytest.mark.parametrize("dim", DIMS, ids=str)
def test_dimensions_as_c_have_their_value(dim: object) -> None:
    text = (
        render_dim(dim, {"T": 0, "B": 1})
        .replace("LL", "")
        .replace("/", "//")
        .replace("tw_max", "max")
        .replace("tw_min", "min")
    )
    rng = random.Random(0)
    for _ in range(50):
        t, b = rng.randrange(1, 600), rng.randrange(1, 70)
        assert eval(text, {"s": (t, b), "max": max, "min": min}) == evaluate_dim(dim, {"T": t, "B": b})  # noqa: S307


def test_affine_dimensions_and_unknown_symbols() -> None:
    text = (
        render_dim(Affine.of("T") / 2 + Affine.of("B") * 3 + 1, {"T": 0, "B": 1})
        .replace("LL", "")
        .replace("/", "//")
    )
    assert eval(text, {"s": (10, 4)}) == math.floor(10 / 2) + 12 + 1  # noqa: S307
    with pytest.raises(ValueError, match="unknown symbol Z; the program has T"):
        render_dim(symbol("Z"), {"T": 0})
    with pytest.raises(ValueError, match="sin is not supported in a plan"):
        render_dim(sympy.sin(T), {"T": 0})
