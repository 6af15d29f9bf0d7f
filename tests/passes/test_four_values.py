"""Every lowering template, four ways: PyTorch or NumPy, graph interpreter, tile interpreter, compiled code.

A failure shows all four values where they part, so that the guilty stage is named by the failure itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.four_values import assert_agree, four_values
from tests.ir.op_samples import Sample, samples
from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.encoding_registry import parse_cache_encodings, parse_encoding, recent_rows
from tilewright.ir.errors import RefusedError, TilewrightError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Module, State, Stored
from tilewright.ir.graph.random_values import Step
from tilewright.ir.interp.kv_cache import through
from tilewright.ir.numbers import hold
from tilewright.ir.plan.core import Program
from tilewright.ir.plan.step import BLOCK
from tilewright.ir.types import TensorType, tensor
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.driver import EXACT, NARROW, run_passes

Array = NDArray[np.generic]
F32 = NDArray[np.float32]
LOWER = "lower, expand-encodings, plan-memory"


def numbers(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


DEFAULT = 'canonicalize, decompose-attend, canonicalize, encode-weights{weights="f32"}, fuse'


@dataclass(frozen=True)
class Held:
    """One computation on its inputs, lowered; `eager`: what PyTorch or NumPy says of it."""

    module: Module
    program: Program
    inputs: dict[str, Array]
    eager: dict[str, Array] | None
    tolerance: float = EXACT
    memory: dict[str, Array] = field(default_factory=dict)

    @property
    def graph(self) -> str:
        return self.module.graphs[0].name

    @property
    def weights(self) -> WeightStore:
        return WeightStore(memory=dict(self.memory))

    def check(self) -> None:
        with np.errstate(all="ignore"):
            values = four_values(
                self.module, self.program, self.graph, self.inputs, self.weights, eager=self.eager
            )
        assert_agree(values, self.tolerance)


def lowered(module: Module, passes: str = DEFAULT) -> tuple[Module, Program]:
    """The module as it enters lowering, and the program."""
    fused = run_passes(module, passes).module
    return fused, run_passes(fused, LOWER).program


# ------------------------------------------------------------------ every op that PyTorch has too
#: samples of ops, or of forms of them, that exist in graphs and have no kernel: lowering refuses them by name
GRAPH_ONLY = {"attend flat", "sequence_length", "fwht"}
#: one of each template in the quick run
QUICK = {
    "gelu", "fma", "select", "cast", "sum", "argmax", "cumsum", "rms_norm offset", "layer_norm", "softmax",
    "gather", "concat",
    "matmul transposed", "scatter corner", "index_put table", "slice lanes", "argmin rough", "repeat",
    "grouped_linear per choice", "grouped_linear sorted", "conv", "attend causal", "topk ties", "transpose",
    "slice", "take_tokens bools", "recurrent",
}  # fmt: skip


def op_module(s: Sample) -> Module:
    b = GraphBuilder("forward")
    operands = [b.add_input(f"a{n}", t) for n, t in enumerate(s.types)]
    made = b.multi(s.op, *operands, **s.attrs)
    for n, o in enumerate(made):
        b.output(o, f"y{n}")
    return b.module()


OPS = [
    pytest.param(s, id=str(s), marks=() if str(s) in QUICK else pytest.mark.slow)
    for s in samples()
    if s.torch and s.args
]


def op_case(sample: Sample) -> Held:
    fused, program = lowered(op_module(sample))
    assert sample.torch is not None
    with np.errstate(all="ignore"):
        eager = sample.torch(*[torch.from_numpy(np.array(a)) for a in sample.args])
    results = eager if isinstance(eager, tuple) else (eager,)
    want = {f"y{n}": np.asarray(r) for n, r in enumerate(results)} if sample.op != "topk" else None
    return Held(fused, program, {f"a{n}": a for n, a in enumerate(sample.args)}, want)


@pytest.mark.parametrize("sample", OPS)
def test_ops(sample: Sample) -> None:
    try:
        case = op_case(sample)
    except TilewrightError as e:
        reasons = f"{sample.op} x1: ", f"needs 'no-{sample.op}'"
        assert str(sample) in GRAPH_ONLY and any(r in str(e) for r in reasons), str(e)
        return
    assert str(sample) not in GRAPH_ONLY, "it has a kernel now: take it out of the list"
    case.check()


def test_products_of_parts_of_wider_rows() -> None:
    """Heads of 24, which no block of the product divides: behind the end of a head lies the next one."""
    b = GraphBuilder("forward")
    x = b.add_input("x", tensor("f32", 2, 5, 144))
    parts = b.multi("split", x, axis=2, sizes=(48, 48, 48))
    q, k, v = (b.op("reshape", p, shape=(2, 5, 2, 24)) for p in parts)
    b.output(b.op("attend", q, k, v, heads=2, kv_heads=2, scale=0.2), "y")
    given = numbers(2, 5, 144)
    qs, ks, vs = (
        torch.from_numpy(p).unflatten(-1, (2, 24)).transpose(1, 2) for p in np.split(given, 3, axis=2)
    )
    want = torch.nn.functional.scaled_dot_product_attention(qs, ks, vs, scale=0.2).transpose(1, 2)
    Held(*lowered(b.module()), {"x": given}, {"y": want.numpy()}).check()


# ------------------------------------------------------------------ linear in every form
WEIGHTS = ("f32", "bf16", "f16", "int8(channel)", "int4(group=32)", "int3(group=32)", "int2(group=32)")
ACTIVATIONS = ("f32", "bf16", "int8(token)")
FORMS = [(a, w) for a in ACTIVATIONS for w in WEIGHTS]
#: fewer bits, scales per group, and weights that are sums of planes
FORMS += [
    ("int4(token)", "int4(group=32)"), ("int8(token, group=32)", "int4(group=32)"),
    ("int8(token, group=96)", "int4(group=32)"),
    ("int8(token, group=32)", "int8(channel)"), ("int4(token, group=48)", "int4(channel, asym)"),
    ("int8(token)", "codebook3"),
    ("int8(token, group=32)", "int4(group=32, scale=int8)"), ("int8(token, group=32)", "planes2(group=32)"),
    ("int8(token, group=96)", "int4(group=32, min)"), ("bf16", "planes2(group=32)"), ("f32", "codebook2"),
    ("bf16", "fp8(e4m3)"),
]  # fmt: skip
QUICK_FORMS = {
    ("f32", "f32"), ("bf16", "bf16"), ("bf16", "int4(group=32)"),
    ("int8(token)", "int8(channel)"), ("int8(token)", "int4(group=32)"),
    ("int8(token, group=96)", "int4(group=32)"),
    ("int4(token)", "int4(group=32)"), ("int8(token)", "codebook3"), ("bf16", "planes2(group=32)"),
}  # fmt: skip


def encoding_of(module: Module, operand: str) -> Encoding | None:
    return module.operand_type(module.graphs[0], operand).encoding


def linear_case(activations: str, weights: str, rows: int) -> Held:
    """With a bias, an activation after it and a residual, as models have them."""
    n, k = 48, 96
    b = GraphBuilder("forward")
    b.symbol("M", 1, 16)
    x, r = b.add_input("x", tensor("f32", "M", k)), b.add_input("r", tensor("f32", "M", n))
    w, bias = (
        b.weight("w", tensor("f32", n, k), Stored("memory", "w")),
        b.weight("b", tensor("f32", n), Stored("memory", "b")),
    )
    b.output(b.op("add", b.op("silu", b.op("linear", x, w, bias)), r), "y")
    encode = (
        f'encode-weights{{weights="{weights}", rules=[["b", "f32"]]}}, '
        f'quantize-activations{{activations="{activations}"}}'
    )
    fused, program = lowered(b.module(), f"canonicalize, {encode}, canonicalize, fuse")
    memory = {"w": numbers(n, k, seed=1), "b": numbers(n, seed=2)}
    inputs = {"x": numbers(rows, k), "r": numbers(rows, n, seed=3)}
    (linear,) = (op for op in fused.graphs[0].ops if op.name == "linear")
    read, stored = (
        through(encoding_of(fused, o), a)
        for o, a in zip(linear.operands, (inputs["x"], memory["w"]), strict=False)
    )
    y = torch.nn.functional.linear(*map(torch.from_numpy, (read, stored, memory["b"])))
    eager = {"y": (torch.nn.functional.silu(y) + torch.from_numpy(inputs["r"])).numpy()}
    tolerance = EXACT if (activations, weights) == ("f32", "f32") else NARROW
    return Held(fused, program, inputs, eager, tolerance, memory)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize(
    ("activations", "weights"),
    [pytest.param(*f, marks=() if f in QUICK_FORMS else pytest.mark.slow) for f in FORMS],
)
def test_linear(activations: str, weights: str, rows: int) -> None:
    linear_case(activations, weights, rows).check()


# ------------------------------------------------------------------ a step with a cache
@dataclass(frozen=True)
class Attention:
    """What a model's attention has; `rope`: q and k are turned before, `turned` channels of them (0: all)."""

    kv_heads: int = 2
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    alibi: bool = False
    rope: bool = False
    kv: str = "f32"
    heads: int = 4
    dim: int = 16
    turned: int = 0
    context: int = 256

    @property
    def extras(self) -> tuple[str, ...]:
        """Weights that attention reads, in the op's order."""
        return ("sinks",) * self.sinks + ("slopes",) * self.alibi


CASES = {
    "causal": Attention(), "all-heads": Attention(kv_heads=4), "one-head": Attention(kv_heads=1),
    "window": Attention(window=3),
    "softcap": Attention(softcap=2.0), "sinks": Attention(sinks=True), "alibi": Attention(alibi=True),
    "rope": Attention(rope=True), "half-rope": Attention(rope=True, turned=8),
    "all": Attention(window=5, softcap=3.0, sinks=True, alibi=True, rope=True),
    "bf16": Attention(kv="bf16"), "bf16-window-sinks": Attention(kv="bf16", window=3, sinks=True),
    "bf16-rope-softcap": Attention(kv="bf16", rope=True, softcap=2.0),
    "bf16-alibi": Attention(kv="bf16", alibi=True, kv_heads=4),
}  # fmt: skip
SLOW = {"half-rope", "all-heads", "one-head", "bf16-window-sinks", "bf16-alibi", "alibi", "softcap", "window",
        "sinks", "rope", "bf16"}  # fmt: skip


def attention_module(c: Attention) -> Module:
    b = GraphBuilder("step")
    for name, most in (("T", 128), ("NB", 128)) if recent_rows(c.kv)[1] else (("T", 32), ("NB", 32)):
        b.symbol(name, 1, most)
    q = b.add_input("q", tensor("f32", "T", c.heads, c.dim))
    k, v = (b.add_input(n, tensor("f32", "T", c.kv_heads, c.dim)) for n in "kv")
    seq, pos = b.add_input("seq", tensor("i32", "T")), b.add_input("pos", tensor("i32", "T"))
    blocks = b.add_input("blocks", tensor("i32", "NB", 4))
    keys, values = parse_cache_encodings(c.kv)
    sizes, recent = (c.kv_heads, c.dim, c.dim, keys, values), recent_rows(c.kv)[1]
    cache = b.state(State("kv.0", *sizes, c.context, c.window or None, recent=recent))
    if c.rope:
        cos, sin = (b.add_input(n, tensor("f32", "T", (c.turned or c.dim) // 2)) for n in ("cos", "sin"))
        q, k = (b.op("rope", x, cos, sin, dim=c.turned) for x in (q, k))
    b.multi("cache_append", cache, k, v, seq, pos)
    extras = [b.weight(n, tensor("f32", c.heads), Stored("memory", n)) for n in c.extras]
    out = b.op(
        "attend_cache", cache, q, seq, pos, blocks, *extras, heads=c.heads, kv_heads=c.kv_heads, scale=0.3,
        window=c.window,
        softcap=c.softcap, sinks=c.sinks, bias="alibi" if c.alibi else "none",
    )  # fmt: skip
    b.output(out, "y")
    return b.module()


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding as transformers spells it."""
    x, rest = x.split([2 * cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]], -1)
    a, b = x.chunk(2, -1)
    y = x * torch.cat([cos, cos], -1)[:, None] + torch.cat([-b, a], -1) * torch.cat([sin, sin], -1)[:, None]
    return torch.cat([y, rest], -1)


def eager_attention(c: Attention, x: dict[str, torch.Tensor], step: Step) -> F32:
    q, k, v = x["q"], x["k"], x["v"]
    if c.rope:
        q, k = (turned(t, x["cos"], x["sin"]) for t in (q, k))
    exact = [t.bfloat16().float() for t in (k, v)]
    k, v = (
        torch.from_numpy(through(e, t.numpy()))
        for e, t in zip(parse_cache_encodings(c.kv), (k, v), strict=True)
    )
    out = torch.zeros_like(q)
    for s in range(len(step.lengths)):
        rows = torch.from_numpy(np.flatnonzero(step.seq == s))
        out[rows] = one_sequence(c, q[rows], (k[rows], v[rows]), (exact[0][rows], exact[1][rows]), x)
    return out.numpy()


Pair = tuple[torch.Tensor, torch.Tensor]


def one_sequence(
    c: Attention, q: torch.Tensor, stored: Pair, exact: Pair, x: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Of a sequence from its first token on; `exact`: what recent rows are kept as."""
    (k, v), (exact_k, exact_v) = (
        [t.repeat_interleave(c.heads // c.kv_heads, 1) for t in pair] for pair in (stored, exact)
    )
    recent = recent_rows(c.kv)[1]
    edge = ((torch.arange(len(q)) + 1) // 16 * 16 - recent) if recent else torch.full((len(q),), len(q))
    late = torch.arange(len(q))[None] >= edge[:, None]
    s = torch.where(
        late, torch.einsum("qhd,khd->hqk", q, exact_k), torch.einsum("qhd,khd->hqk", q, k)
    ) * 0.3  # fmt: skip
    if c.softcap:
        s = c.softcap * torch.tanh(s / c.softcap)
    gap = torch.arange(len(q))[:, None] - torch.arange(len(q))[None, :]
    if c.alibi:
        s = s - x["slopes"][:, None, None] * gap
    seen = (gap >= 0) & (gap < (c.window or len(q)))
    s = s.masked_fill(~seen, float("-inf"))
    if c.sinks:
        s = torch.cat([s, x["sinks"][:, None, None].expand(-1, len(q), 1)], -1)
    p = s.softmax(-1)[..., : len(q)]
    return torch.einsum("hqk,khd->qhd", p * late, exact_v) + torch.einsum("hqk,khd->qhd", p * ~late, v)


def attention_case(name: str) -> Held:
    """Two prompts and two single tokens in one step, from empty caches."""
    c, step = CASES[name], Step((13, 1, 9, 1), (0, 0, 0, 0))
    fused, program = lowered(attention_module(c), "canonicalize, fuse")
    count = len(step.seq)
    inputs: dict[str, Array] = {"seq": step.seq, "pos": step.pos, "blocks": step.blocks(BLOCK)}
    inputs["q"] = numbers(count, c.heads, c.dim)
    inputs |= {n: numbers(count, c.kv_heads, c.dim, seed=i + 1) for i, n in enumerate("kv")}
    if c.rope:
        angles = step.pos[:, None] * 0.1 ** np.arange((c.turned or c.dim) // 2)
        inputs |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    memory = {"sinks": numbers(c.heads, seed=7), "slopes": np.abs(numbers(c.heads, seed=8))}
    x = {n: torch.from_numpy(np.array(a)) for n, a in {**inputs, **memory}.items()}
    used: dict[str, Array] = {n: memory[n] for n in c.extras}
    return Held(
        fused, program, inputs, {"y": eager_attention(c, x, step)}, EXACT if c.kv == "f32" else NARROW, used
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES]
)
def test_attention(name: str) -> None:
    attention_case(name).check()


# ------------------------------------------------------------------ rows through a narrow form
def norm_case(encoding: str) -> Held:
    """A norm whose result is encoded in the same kernel: what is decoded is within one step of the codes."""
    b = GraphBuilder("forward")
    b.symbol("M", 1, 8)
    x = b.add_input("x", tensor("f32", "M", 96))
    w = b.weight("w", TensorType("f32", (96,)), Stored("memory", "w"))
    b.output(b.op("decode", b.op("encode", b.op("rms_norm", x, w, eps=1e-5), encoding=encoding)), "y")
    fused, program = lowered(b.module(), "canonicalize, fuse")
    inputs, memory = {"x": numbers(5, 96)}, {"w": numbers(96, seed=1)}
    norm = torch.nn.functional.rms_norm(
        torch.from_numpy(inputs["x"]), (96,), torch.from_numpy(memory["w"]), 1e-5
    )
    want = {"y": hold(through(parse_encoding(encoding), norm.numpy()), "f32")}
    return Held(fused, program, inputs, want, 0.01, memory)


@pytest.mark.parametrize(
    "encoding", ["bf16", pytest.param("f16", marks=pytest.mark.slow), "int8(token)", "int8(token, group=32)"]
)
def test_norm_that_is_read_narrow(encoding: str) -> None:
    norm_case(encoding).check()


@pytest.mark.parametrize(
    ("activations", "weights", "words"),
    [
        (
            "int8(token, group=48)",
            "int4(group=32)",
            "its groups of 32 cannot be combined with groups of 48 of the activations",
        ),
        (
            "int8(token, group=32)",
            "codebook2",
            "one row cannot be combined with groups of 32 of the activations",
        ),
    ],
)
def test_groups_that_do_not_meet(activations: str, weights: str, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        linear_case(activations, weights, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int8(token, group=6)", "group must be a positive multiple of 4, got 6"),
        ("int1(token)", "2 to 8 bits are expected"),
        ("int8(token, size=32)", "unknown option size; known: group=N"),
    ],
)
def test_activations_that_are_no_encoding(text: str, words: str) -> None:
    with pytest.raises(EncodingError, match=words):
        parse_encoding(text)
