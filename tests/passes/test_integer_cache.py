"""Caches of integers: what attention makes of codes on both sides, four ways, at every level of this machine.

The graph interpreter decodes keys and values and computes in floats. Kernels round queries to int8 and
weights to u8, so they are compared with it within the error of that rounding, and with each other more
closely. Which sequence of steps a row arrives in must not change a bit of its result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.passes.models import Llama, llama
from tests.passes.test_four_values import Attention, Held, attention_module, eager_attention, lowered, numbers
from tilewright.backends.cpp.levels import runnable
from tilewright.backends.cpp.target import Target
from tilewright.ir.encoding_registry import parse_cache_encodings, parse_encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.random_values import Step
from tilewright.ir.interp.graph import Interpreter
from tilewright.ir.interp.kv_cache import InterpStates
from tilewright.ir.interp.plan import PlanRunner
from tilewright.ir.plan.step import BLOCK
from tilewright.passes.driver import EXACT, difference, run_passes
from tilewright.tools.ir_text import compiled

Array = NDArray[np.generic]
#: of results of order 1: q as int8 and weights as u8; how far a weight on the edge of a code moves one
ROUNDING, EDGE = 0.02, 0.004


@dataclass(frozen=True)
class Bytes:
    """A cache of 64 channels: bits per element, and the largest error of normal values (root mean
    square)."""

    kv: str
    bits: tuple[float, float]
    error: float


STORED = [
    Bytes("int8(token)", (8.25, 8.25), 0.01), Bytes("int4(token)", (4.25, 4.25), 0.12),
    Bytes("int4(group=32)", (4.5, 4.5), 0.11), Bytes("int4(token, asym)", (4.375, 4.375), 0.1),
    Bytes("int8(token) / int4(group=32)", (8.25, 4.5), 0.11),
    Bytes("int2(group=64) / int2(group=64, asym)", (2.25, 2.375), 0.75),
]  # fmt: skip
CASES = {
    "int8": Attention(kv="int8(token)", dim=64),
    "int4": Attention(kv="int4(token)", dim=32, kv_heads=4),
    "int4-groups": Attention(kv="int4(group=32)", dim=96, kv_heads=1),
    "int8-int4": Attention(kv="int8(token) / int4(group=32, asym)", dim=64, window=5, sinks=True),
    "int4-int8": Attention(kv="int4(token, asym) / int8(token, asym)", dim=128, softcap=2.0, alibi=True),
    "int8-bf16": Attention(kv="int8(group=16) / bf16", dim=48, rope=True),
    "bf16-int8": Attention(kv="bf16 / int8(group=16)", dim=48, heads=2, kv_heads=1),
    "int4-recent": Attention(kv="int4(group=32, asym) + recent(16)", dim=64, sinks=True),
    "int8-int4-recent": Attention(kv="int8(token) / int4(token) + recent(32)", kv_heads=4, window=50, dim=32),
    "bf16-int4-recent": Attention(kv="bf16 / int4(group=16) + recent(16)", kv_heads=1, dim=16, alibi=True),
    "fp8-recent": Attention(kv="fp8(e4m3, channel) + recent(16)", dim=16, softcap=2.0, rope=True),
}
QUICK = {"int8-int4", "int4-recent"}


def held(c: Attention, step: Step) -> Held:
    """Attention after an append, of these tokens from an empty cache."""
    fused, program = lowered(attention_module(c), "canonicalize, fuse")
    count = len(step.seq)
    inputs: dict[str, Array] = {"seq": step.seq, "pos": step.pos, "blocks": step.blocks(BLOCK)}
    inputs["q"] = numbers(count, c.heads, c.dim) * np.float32(0.5)
    inputs |= {n: numbers(count, c.kv_heads, c.dim, seed=i + 1) for i, n in enumerate("kv")}
    if c.rope:
        angles = step.pos[:, None] * 0.1 ** np.arange(c.dim // 2)
        inputs |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    memory = {"sinks": numbers(c.heads, seed=7), "slopes": np.abs(numbers(c.heads, seed=8))}
    x = {n: torch.from_numpy(np.array(a)) for n, a in {**inputs, **memory}.items()}
    return Held(
        fused, program, inputs, {"y": eager_attention(c, x, step)}, EXACT, {n: memory[n] for n in c.extras}
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES]
)
def test_four_values(name: str, levels: tuple[Target, ...]) -> None:
    lengths = (75, 1, 18, 16) if "recent" in name else (13, 1, 9, 1)
    case = held(CASES[name], Step(lengths, (0, 0, 0, 0)))
    graph = Interpreter(case.module, case.weights).run(
        case.graph, case.inputs, InterpStates(case.module.states)
    )
    assert case.eager is not None and difference(case.eager["y"], graph["y"]) < 1e-4
    tile = PlanRunner(case.program, case.weights).run(case.graph, case.inputs)
    assert difference(graph["y"], tile["y"]) < ROUNDING
    for level in levels:
        got = PlanRunner(case.program, case.weights, compiled(level.name, 2)).run(case.graph, case.inputs)
        assert difference(tile["y"], got["y"]) < EDGE, level.name


@pytest.mark.parametrize(
    ("kv", "length", "parts"),
    [("int8(token) / int4(token)", 23, [5, 6, 12]), ("int4(token) + recent(16)", 83, [31, 2, 17, 33])],
)
def test_steps_of_any_size_give_the_same_bits(kv: str, length: int, parts: list[int]) -> None:
    """A prompt in one step, in uneven parts beside another sequence, and token by token."""
    whole = held(Attention(kv=kv, dim=32), Step((length,), (0,)))
    target = compiled(runnable()[-1].name, 2)
    want = PlanRunner(whole.program, whole.weights, target).run(whole.graph, whole.inputs)["y"]
    for cuts in (parts, [1] * length):
        runner, at, got = PlanRunner(whole.program, whole.weights, target), 0, []
        for n in cuts:
            step = Step((n, 2), (at, 0)) if n > 1 else Step((n,), (at,))
            rows = np.r_[at : at + n, 0 : len(step.seq) - n]
            inputs = {k: a[rows] for k, a in whole.inputs.items() if k in ("q", "k", "v")}
            inputs |= {"seq": step.seq, "pos": step.pos, "blocks": step.blocks(BLOCK)}
            got.append(runner.run(whole.graph, inputs)["y"][:n])
            at += n
        np.testing.assert_array_equal(np.concatenate(got), want)


@pytest.mark.parametrize("case", STORED, ids=lambda c: c.kv)
def test_a_cache_takes_the_bytes_of_its_encoding(case: Bytes) -> None:
    x = numbers(2, 48, 64)
    for e, bits in zip(parse_cache_encodings(case.kv), case.bits, strict=True):
        assert parse_encoding(str(e)) == e
        assert e.bits_per_element(x.shape) == bits
        streams = e.encode(x)
        back = e.unpack(e.pack(streams, x.shape), x.shape)
        for name, a in streams.items():
            np.testing.assert_array_equal(back[name].reshape(a.shape), a, err_msg=name)
        assert np.sqrt(np.square(e.decode(streams) - x).mean()) <= case.error


def test_rows_are_stored_without_touching_their_neighbours() -> None:
    """Every byte of the values of a token, but for its scale, holds codes of that token alone."""
    x, e = numbers(1, 16, 64), parse_cache_encodings("int4(token)")[1]
    changed = x.copy()
    changed[0, 5] = -x[0, 5]
    differs = e.pack(e.encode(x), x.shape) != e.pack(e.encode(changed), x.shape)
    low, high = (e.encode(y)["codes"][0, 5] for y in (x, changed))
    pairs = (low != high).reshape(2, 2, 16).any(1)
    assert differs.sum() == pairs.sum()


REFUSED = {
    "int4(group=48)": "keys of 64 channels: int4(group=48, layout=keys): group 48 does not divide K = 64",
    "int8(channel)": "int8(channel): a cache is stored one token at a time, so its tokens cannot",
    "bf16 / int8(token) / bf16": "'bf16 / int8(token) / bf16' names 3 encodings",
    "codebook3": "codebook3 is only made ahead of time, for weights",
    "bf16 / int2(token)": "values of 96 channels: int2(token, layout=values): run of codes 64",
    "int4(token) + recent(24)": "recent(24): expected a multiple of 16 from 16 to 192, as in recent(64)",
    "int4(token) + recent(x": "recent(x: expected a multiple of 16 from 16 to 192, as in recent(64)",
    "int4(token) + recent(208)": "recent(208): expected a multiple of 16 from 16 to 192",
    "int4(token) + recent(16) / bf16": "recent(N) goes last and is of both sides: KEYS / VALUES + recent(N)",
    "bf16 / f32 + recent(16)": "recent(16) keeps rows in bf16, and bf16 / f32 is no smaller; omit it",
}


@pytest.mark.parametrize("kv", REFUSED)
def test_refused(kv: str) -> None:
    width = 96 if "96" in REFUSED[kv] else 64
    passes = f'canonicalize, recognise, canonicalize, flatten-tokens, incrementalize{{kv="{kv}"}}'
    with pytest.raises(RefusedError) as e:
        run_passes(llama(Llama(layers=1, dim=width, rotary=width)), passes)
    assert REFUSED[kv] in str(e.value) and "KEYS / VALUES" in str(e.value)


def test_rows_that_may_be_lost_are_not_kept_twice() -> None:
    passes = (
        "canonicalize, recognise, canonicalize, flatten-tokens, "
        'incrementalize{evicts=true, kv="int4(token) + recent(16)"}'
    )
    with pytest.raises(RefusedError, match="cannot keep recent ones in bf16 as well"):
        run_passes(llama(Llama(layers=1, dim=64, rotary=64)), passes)


def test_the_largest_weight_may_have_the_smallest_values() -> None:
    """A sink takes most of the weight and holds tiny values: the others keep their precision."""
    c = Attention(kv="int8(token)", dim=32, kv_heads=4)
    case = held(c, Step((32,), (0,)))
    inputs = dict(case.inputs)
    k, v, q = (np.array(inputs[n]) for n in "kvq")
    k[0], v[0] = q.mean(0) * 30, v[0] * np.float32(1e-3)
    inputs |= {"k": k, "v": v}
    case = replace(case, inputs=inputs)
    graph = Interpreter(case.module, case.weights).run(
        case.graph, case.inputs, InterpStates(case.module.states)
    )
    tile = PlanRunner(case.program, case.weights).run(case.graph, case.inputs)
    assert difference(graph["y"], tile["y"]) < ROUNDING
