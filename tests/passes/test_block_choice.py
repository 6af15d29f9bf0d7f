"""Attention over chosen blocks of a cache, four ways: NumPy, interpreters, compiled.

A prompt of one sequence, single tokens of several with different budgets, and a prompt beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.passes.test_four_values import lowered, numbers
from tilewright.ir.encoding_registry import parse_cache_encodings
from tilewright.ir.errors import ParseError, VerifyError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Module, State
from tilewright.ir.graph.random_values import Step
from tilewright.ir.graph.verify import verify_module
from tilewright.ir.interp.graph import Interpreter
from tilewright.ir.interp.kv_cache import InterpStates, through
from tilewright.ir.interp.plan import PlanRunner
from tilewright.ir.plan.verify import verify_program
from tilewright.ir.selection import Selection, SelectionError, chosen_blocks, parse_selection
from tilewright.ir.text.graph_parser import parse_module
from tilewright.ir.text.graph_printer import print_module
from tilewright.ir.tile.verify import verify_kernel
from tilewright.ir.types import tensor
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.driver import EXACT, NARROW, difference
from tilewright.tools.ir_text import compiled

Array = NDArray[np.generic]
F64 = NDArray[np.float64]
DIM, SCALE, CONTEXT = 16, 0.3, 512


@dataclass(frozen=True)
class Case:
    """`budget`: of the long sequence: blocks, and how many of them are the first and the last."""

    select: str
    heads: int = 4
    kv_heads: int = 2
    kv: str = "f32"
    budget: tuple[int, int, int] = (5, 1, 2)


CASES = {
    "bound": Case("bound(block=16, pool=max)"),
    "mean, bytes": Case("mean(block=32, pool=sum)", heads=2, kv_heads=1, kv="int8(token)", budget=(4, 0, 1)),
    "mix, mha": Case("mix(block=64, pool=max)", kv_heads=4, kv="bf16", budget=(3, 1, 1)),
    "bound, slices": Case("bound(block=256, pool=sum)", heads=8, kv_heads=1, budget=(1, 0, 1)),
    "mean, everything": Case("mean(block=16, pool=max)", budget=(500, 1, 1)),
}
#: queries and weights are rounded to bytes where keys and values are
TOLERANCES = {"f32": EXACT, "bf16": NARROW, "int8(token)": 0.02}
SLOW = set(CASES) - {"bound"}


def module_of(c: Case) -> Module:
    b = GraphBuilder("step")
    for name in ("T", "NB"):
        b.symbol(name, 1, 512)
    q = b.add_input("q", tensor("f32", "T", c.heads, DIM))
    k, v = (b.add_input(n, tensor("f32", "T", c.kv_heads, DIM)) for n in "kv")
    seq, pos = b.add_input("seq", tensor("i32", "T")), b.add_input("pos", tensor("i32", "T"))
    blocks, choices = (
        b.add_input(n, tensor("i32", *s)) for n, s in (("blocks", ("NB", 4)), ("choices", ("T", 3)))
    )
    keys, values = parse_cache_encodings(c.kv)
    state = State("kv.0", c.kv_heads, DIM, DIM, keys, values, CONTEXT, select=parse_selection(c.select))
    cache, how = b.state(state), {"heads": c.heads, "kv_heads": c.kv_heads}
    b.multi("cache_append", cache, k, v, seq, pos, as_=[])
    b.multi("score_blocks", cache, q, seq, pos, choices, as_=[], **how)
    b.multi("choose_blocks", cache, seq, pos, choices, as_=[])
    b.output(b.op("attend_blocks", cache, q, seq, pos, blocks, choices, scale=SCALE, **how), "y")
    return b.module()


def steps_of(c: Case) -> list[dict[str, Array]]:
    """The last step is of single tokens alone, which has kernels of its own."""
    none, few, out = (0, 0, 0), (4, 1, 1), []
    plans = [((300, 7, 0), (0, 0, 0), [none] * 307)]
    plans += [((1, 1, 9), (300 + n, 7 + n, 9 * n), [c.budget, few, *[none] * 9]) for n in range(3)]
    plans.append(((1, 1, 1), (303, 10, 27), [c.budget, c.budget, none]))
    for n, (lengths, starts, choices) in enumerate(plans):
        step = Step(lengths, starts)
        x = {
            "seq": step.seq,
            "pos": step.pos,
            "blocks": step.blocks(),
            "choices": np.asarray(choices, np.int32),
        }
        rows = len(step.seq)
        x |= {"q": numbers(rows, c.heads, DIM, seed=10 * n)}
        out.append(x | {a: numbers(rows, c.kv_heads, DIM, seed=10 * n + 1 + i) for i, a in enumerate("kv")})
    return out


class Plain:
    """Rows of every (sequence, KV head), and attention over them row by row, as the definitions say."""

    def __init__(self, c: Case) -> None:
        self.c, self.select = c, parse_selection(c.select)
        self.keys, self.values = parse_cache_encodings(c.kv)
        self.rows: dict[tuple[int, int], list[tuple[F64, F64]]] = {}

    def step(self, x: dict[str, Array]) -> Array:
        n, group = len(x["seq"]), self.c.heads // self.c.kv_heads
        k, v = (
            through(e, x[a].swapaxes(0, 1)).swapaxes(0, 1) for e, a in ((self.keys, "k"), (self.values, "v"))
        )
        out = np.zeros((n, self.c.heads, DIM))
        for t in range(n):
            for h in range(self.c.kv_heads):
                held = self.rows.setdefault((int(x["seq"][t]), h), [])
                held.append((k[t, h].astype(np.float64), v[t, h].astype(np.float64)))
                heads = slice(h * group, (h + 1) * group)
                out[t, heads] = self.attend(
                    x["q"][t, heads].astype(np.float64), held, x["choices"][t].tolist()
                )
        return out.astype(np.float32)

    def attend(self, q: F64, held: list[tuple[F64, F64]], choice: list[int]) -> F64:
        keys, values = (np.stack(a) for a in zip(*held, strict=True))
        if choice[0]:
            blocks = -(-len(keys) // self.select.block)
            taken = chosen_blocks(self.select.scores(q, keys), blocks, *choice)
            assert taken.sum() == min(choice[0], blocks) and taken[-1]
            rows = np.repeat(taken, self.select.block)[: len(keys)]
            keys, values = keys[rows], values[rows]
        s = np.exp(q @ keys.T * SCALE)
        return np.asarray(s / s.sum(1, keepdims=True) @ values)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES]
)
def test_chosen_blocks_are_attended_to(name: str) -> None:
    c = CASES[name]
    module = module_of(c)
    assert parse_module(print_module(module)) == module
    fused, program = lowered(module, "canonicalize, fuse")
    verify_program(program)
    for kernel in program.kernels:
        verify_kernel(kernel)
    weights, states, plain = WeightStore(memory={}), InterpStates(fused.states), Plain(c)
    interpreter, native = Interpreter(fused, weights), PlanRunner(program, weights, compiled("avx2", 1))
    tile = PlanRunner(program, weights) if c.kv == "f32" else native  # it takes its time
    stages: dict[str, Callable[[dict[str, Array]], dict[str, Array]]] = {
        "graph": lambda x: interpreter.run("step", x, states),
        "compiled": lambda x: native.run("step", x),
        "tile": lambda x: tile.run("step", x),
    }
    for n, x in enumerate(steps_of(c)):
        want = plain.step(x)
        for stage, run in stages.items():
            gap = difference(want, run(x)["y"])
            assert gap <= TOLERANCES[c.kv], f"{stage}, step {n}: differs by {gap}"


# ------------------------------------------------------------------ definitions
@pytest.mark.parametrize("measure", ["bound", "mean"])
def test_bounds_are_bounds_and_means_are_means(measure: str) -> None:
    draw = np.random.default_rng(2)
    keys, q = draw.standard_normal((70, 8)), draw.standard_normal((3, 8))
    scores, each = Selection(measure, 16, "max").scores(q, keys), q @ keys[:64].T
    assert scores.shape == (4,)
    blocks = each.reshape(3, 4, 16)
    if measure == "bound":
        assert (scores >= blocks.max((0, 2)) - 0.02 * np.abs(scores)).all()  # rounded to bf16
    else:
        assert np.allclose(scores, blocks.mean(2).max(0), atol=0.02)


def test_a_choice_has_the_ends_and_the_earlier_of_equal_blocks() -> None:
    scores = np.array([0.0, 2, 3, 2, 2, 9])
    assert chosen_blocks(scores, 7, 5, 1, 1).nonzero()[0].tolist() == [0, 1, 2, 5, 6]
    assert chosen_blocks(scores, 7, 3, 1, 2).nonzero()[0].tolist() == [0, 5, 6]
    assert chosen_blocks(scores, 7, 7, 1, 1).all() and chosen_blocks(scores[:0], 1, 4, 1, 1).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("median(block=16, pool=max)", "a measure of 'median'; expected mean, bound, mix"),
        ("mean(block=17, pool=max)", "a block of 17; expected 16, 32, 64, 128, 256"),
        ("mean(block=16, pool=mean)", "a pool of 'mean'; expected max, sum"),
        ("mean", "'mean': expected MEASURE(block=ROWS, pool=POOL)"),
    ],
)
def test_what_is_no_selection(text: str, message: str) -> None:
    with pytest.raises(SelectionError) as e:
        parse_selection(text)
    assert str(e.value) == message
    printed = print_module(module_of(CASES["bound"])).replace(CASES["bound"].select, text)
    with pytest.raises(ParseError) as p:
        parse_module(printed)
    assert message in str(p.value)


def test_a_state_holds_whole_blocks() -> None:
    text = print_module(module_of(CASES["bound, slices"])).replace("context=512", "context=500")
    with pytest.raises(VerifyError, match="context is 500, expected whole blocks"):
        verify_module(parse_module(text))
