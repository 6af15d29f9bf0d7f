"""Caches that lose rows and count the attention that rows get, four ways: NumPy, interpreters, compiled.

Two steps: prompts and single tokens are read, rows are taken away, further tokens follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.passes.test_four_values import lowered, numbers
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Module, State, Stored
from tilewright.ir.graph.random_values import Step
from tilewright.ir.interp.graph import Interpreter
from tilewright.ir.interp.kv_cache import InterpStates
from tilewright.ir.interp.plan import PlanRunner
from tilewright.ir.numbers import from_bits
from tilewright.ir.types import tensor
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.driver import EXACT, NARROW, difference
from tilewright.tools.ir_text import compiled

Array = NDArray[np.generic]
F64 = NDArray[np.float64]
FIRST, SECOND = Step((13, 1, 20), (0, 0, 0)), Step((1, 3, 1), (13, 1, 20))
SCALE, DIM = 0.3, 16


@dataclass(frozen=True)
class Case:
    heads: int = 4
    kv_heads: int = 2
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    alibi: bool = False
    kv: str = "f32"

    @property
    def extras(self) -> tuple[str, ...]:
        return ("sinks",) * self.sinks + ("slopes",) * self.alibi


CASES = {
    "grouped": Case(),
    "all": Case(window=9, softcap=3.0, sinks=True, alibi=True),
    "all-heads": Case(kv_heads=4, alibi=True),
    "one-head": Case(kv_heads=1, sinks=True),
    "bf16": Case(kv="bf16", window=9),
}
SLOW = {"all-heads", "one-head", "bf16"}


def module_of(c: Case) -> Module:
    b = GraphBuilder("step")
    for name, least in (("T", 1), ("NB", 1), ("NR", 0)):
        b.symbol(name, least, 64)
    q = b.add_input("q", tensor("f32", "T", c.heads, DIM))
    k, v = (b.add_input(n, tensor("f32", "T", c.kv_heads, DIM)) for n in "kv")
    seq, pos = b.add_input("seq", tensor("i32", "T")), b.add_input("pos", tensor("i32", "T"))
    blocks, runs = (b.add_input(n, tensor("i32", d, 4)) for n, d in (("blocks", "NB"), ("runs", "NR")))
    keys, values = (parse_encoding(c.kv).arranged(order) for order in ("keys", "values"))
    window = c.window or None
    cache = b.state(State("kv.0", c.kv_heads, DIM, DIM, keys, values, 256, window, True, True))
    b.multi("cache_append", cache, k, v, seq, pos, as_=[])
    extras = [b.weight(n, tensor("f32", c.heads), Stored("memory", n)) for n in c.extras]
    how = {"heads": c.heads, "kv_heads": c.kv_heads, "scale": SCALE, "window": c.window, "softcap": c.softcap}
    how["bias"] = "alibi" if c.alibi else "none"
    y, lse = b.multi("attend_cache", cache, q, seq, pos, blocks, *extras, sinks=c.sinks, lse=True, **how)
    b.multi("observe_cache", cache, q, lse, runs, *extras[c.sinks :], as_=[], **how)
    b.output(y, "y")
    b.output(lse, "lse")
    return b.module()


def inputs_of(c: Case, step: Step, seed: int) -> dict[str, Array]:
    """The queries of the first and the last sequence are observed; of a first prompt only from its third
    on."""
    n, blocks = len(step.seq), step.blocks()
    starts = np.cumsum([0, *step.lengths])
    runs = [[int(starts[s]), step.lengths[s], s, step.starts[s]] for s in (0, 2)]
    if step.lengths[0] > 2:
        runs[0] = [2, step.lengths[0] - 2, 0, 2]
    out: dict[str, Array] = {
        "seq": step.seq, "pos": step.pos, "blocks": blocks, "runs": np.asarray(runs, np.int32),
        "q": numbers(n, c.heads, DIM, seed=seed),
    }  # fmt: skip
    return out | {x: numbers(n, c.kv_heads, DIM, seed=seed + 1 + i) for i, x in enumerate("kv")}


# ------------------------------------------------------------------ what should come out
@dataclass
class Plain:
    """Rows of every (sequence, KV head) as lists: position, key, value, score."""

    c: Case
    weights: dict[str, Array]

    def __post_init__(self) -> None:
        self.rows: dict[tuple[int, int], list[list[object]]] = {
            (s, h): [] for s in range(3) for h in range(self.c.kv_heads)
        }

    def step(self, x: dict[str, Array]) -> dict[str, Array]:
        n, group = len(x["seq"]), self.c.heads // self.c.kv_heads
        y, lse = np.zeros((n, self.c.heads, DIM)), np.zeros((n, self.c.heads))
        seen = {r + k for r, count, _, _ in x["runs"].tolist() for k in range(count)}
        for t in range(n):
            s, p = int(x["seq"][t]), int(x["pos"][t])
            for h in range(self.c.kv_heads):
                held = self.rows[s, h]
                held.append([p, x["k"][t, h], x["v"][t, h], 0.0])
                for head in range(h * group, (h + 1) * group):
                    weights, lse[t, head] = self.softmax(x["q"][t, head], held, p, head)
                    y[t, head] = sum(
                        w * np.asarray(r[2], np.float64) for w, r in zip(weights, held, strict=True)
                    )
                    for w, r in zip(weights, held, strict=True):
                        r[3] += w if t in seen else 0.0  # type: ignore[operator]
        return {"y": y.astype(np.float32), "lse": lse.astype(np.float32)}

    def softmax(self, q: Array, held: list[list[object]], p: int, head: int) -> tuple[F64, float]:
        keys = np.stack([np.asarray(r[1], np.float64) for r in held])
        at = np.asarray([r[0] for r in held])
        s = keys @ q.astype(np.float64) * SCALE
        s = self.c.softcap * np.tanh(s / self.c.softcap) if self.c.softcap else s
        s = s - self.weights["slopes"][head] * (p - at) if self.c.alibi else s
        s = np.where(p - at < (self.c.window or 1 << 30), s, -np.inf)
        total = np.exp(s).sum() + (np.exp(self.weights["sinks"][head]) if self.c.sinks else 0)
        return np.exp(s) / total, float(np.log(total))

    def scores(self, s: int, h: int) -> F64:
        return np.asarray([r[3] for r in self.rows[s, h]], np.float64)


def kept_of(s: int, h: int, n: int) -> NDArray[np.int32]:
    """Every third row goes from odd heads, every second from even ones; of the last sequence nothing."""
    rows = np.arange(n, dtype=np.int32)
    return rows if s == 2 else rows[rows % (2 + h % 2) != 1]


# ------------------------------------------------------------------ the stages
def graph_stage(c: Case, module: Module, memory: dict[str, Array]) -> list[dict[str, Array]]:
    states, run = InterpStates(module.states), Interpreter(module, WeightStore(memory=dict(memory)))
    first = run.run("step", inputs_of(c, FIRST, 1), states)
    for s, n in ((0, 13), (1, 1), (2, 20)):
        states["kv.0"].keep(s, n, [kept_of(s, h, n) for h in range(c.kv_heads)])
    second = run.run("step", inputs_of(c, SECOND, 5), states)
    held = states["kv.0"].slots
    scores = {
        f"score.{s}.{h}": held[s].score[: n - held[s].gone[h], h]
        for s, n in ((0, 14), (1, 4), (2, 21)) for h in range(c.kv_heads)
    }  # fmt: skip
    return [first, {**second, **scores}]


def plan_stage(c: Case, runner: PlanRunner) -> list[dict[str, Array]]:
    """Rows are moved in the packed bytes, as a session moves them."""
    first = runner.run("step", inputs_of(c, FIRST, 1))
    state = runner.program.states[0]
    for s, n in ((0, 13), (1, 1), (2, 20)):
        for h in range(c.kv_heads):
            move_rows(runner, state, s, h, n, kept_of(s, h, n))
    second = runner.run("step", inputs_of(c, SECOND, 5))
    gone, score = (runner.caches[f"@kv.0.{x}"] for x in ("gone", "score"))
    held = from_bits(score, "f32")
    scores = {
        f"score.{s}.{h}": held[s, h, : n - int(gone[s, h])]
        for s, n in ((0, 14), (1, 4), (2, 21)) for h in range(c.kv_heads)
    }  # fmt: skip
    return [first, {**second, **scores}]


def move_rows(runner: PlanRunner, state: State, s: int, h: int, n: int, kept: NDArray[np.int32]) -> None:
    for stream in state.streams:
        memory = runner.caches[f"@kv.0.{stream.name}"]
        if stream.name == "home":
            continue
        if stream.name == "gone":
            memory[s, h] += n - len(kept)
        elif stream.encoding is None or stream.encoding.array_dtype:
            memory[s, h, : len(kept)] = memory[s, h, kept]
        else:
            shape = (runner.slots, *stream.shape)
            parts = stream.encoding.unpack(memory, shape)
            for x in parts.values():
                x[s, h, : len(kept)] = x[s, h, kept]
            memory[...] = stream.encoding.pack(parts, shape)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES]
)
def test_rows_go_and_attention_is_counted(name: str) -> None:
    c = CASES[name]
    fused, program = lowered(module_of(c), "canonicalize, fuse")
    memory = {"sinks": numbers(c.heads, seed=7), "slopes": np.abs(numbers(c.heads, seed=8))}
    used: dict[str, Array] = {n: memory[n] for n in c.extras}
    plain = Plain(c, dict(memory))
    first = plain.step(inputs_of(c, FIRST, 1))
    for (s, h), held in plain.rows.items():
        plain.rows[s, h] = [held[r] for r in kept_of(s, h, len(held)).tolist()]
    second = plain.step(inputs_of(c, SECOND, 5))
    second |= {f"score.{s}.{h}": plain.scores(s, h).astype(np.float32) for s, h in plain.rows}
    weights = WeightStore(memory=dict(used))
    stages = {
        "graph": graph_stage(c, fused, used),
        "tile": plan_stage(c, PlanRunner(program, weights)),
        "compiled": plan_stage(c, PlanRunner(program, weights, compiled("avx2", 1))),
    }
    tolerance = EXACT if c.kv == "f32" else NARROW
    for stage, found in stages.items():
        for n, (want, got) in enumerate(zip((first, second), found, strict=True)):
            for key, value in want.items():
                gap = difference(value, got[key])
                assert gap <= tolerance, f"{stage}, step {n}, {key}: differs by {gap}"
