"""Random graphs of PyTorch's operators: equal to eager, or refused with a message.

A seed gives inputs (shapes with axes of 0 and 1, all element types, some of them transposed) and steps, each
an operator on values so far. Steps that jump, such as a comparison or a sort, read values that are exact on
both sides; the others do not amplify errors. As a script: `python -m tests.compiler.random_graphs [--count N]
[--first SEED] [--stages graph,tile,compiled]`, with a summary at the end.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.compiler.small_modules.base import ALL, BOOL, FLOATS, INTS, U8, Case
from tests.compiler.small_modules.run import Cases, problems
from tilewright.ir.errors import TilewrightError

SIZES = (1, 1, 2, 3, 4, 5, 8, 17) * 3 + (0,)
#: most elements of a value, and most steps
MOST, STEPS = 4000, 9


@dataclass(frozen=True)
class Step:
    """An operator on earlier values. `exact`: its result has no error where its operands have none."""

    text: str
    fn: Callable[..., Tensor]
    reads: tuple[int, ...]
    exact: bool


@dataclass
class Graph:
    """Inputs and steps; a callable of the inputs that gives the last values."""

    seed: int
    inputs: list[Tensor] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = list(inputs)
        for step in self.steps:
            values.append(step.fn(*(values[n] for n in step.reads)))
        return tuple(values[-3:])

    def __str__(self) -> str:
        lines = [f"v{n} = {str(x.dtype)[6:]}{list(x.shape)}" for n, x in enumerate(self.inputs)]
        for n, s in enumerate(self.steps, len(self.inputs)):
            lines.append(f"v{n} = {s.text}({', '.join(f'v{r}' for r in s.reads)})")
        return f"seed {self.seed}: " + "; ".join(lines)

    def case(self) -> Case:
        makers = tuple((lambda d, x=x: x) for x in self.inputs)
        return Case(self, makers, (torch.float32,), loose=20)


# ------------------------------------------------------------------ growing
class Growing:
    """A graph under construction: its values as eager has them, and which of them are exact."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.draw = torch.Generator().manual_seed(seed)
        self.graph = Graph(seed)
        self.values: list[Tensor] = []
        self.exact: list[bool] = []
        self.shape = [self.rng.choice(SIZES) for _ in range(self.rng.choice((0, 1, 2, 2, 3, 3, 4)))]
        for _ in range(self.rng.randint(1, 3)):
            self.input()

    def input(self) -> None:
        """Shapes are alike, so that values broadcast: axes of the common shape, or 1, or fewer of them."""
        shape = [n if self.rng.random() < 0.8 else 1 for n in self.shape]
        shape = shape[self.rng.choice((0, 0, 0, 1)) :]
        dtype = self.rng.choice((*FLOATS[:1] * 4, *ALL))
        x = self.numbers(shape, dtype)
        if len(shape) > 1 and self.rng.random() < 0.25:
            x = self.numbers(shape[::-1], dtype).permute(*range(len(shape))[::-1])
        self.graph.inputs.append(x)
        self.values.append(x)
        self.exact.append(True)

    def numbers(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        u = torch.rand(tuple(shape), generator=self.draw, dtype=torch.float64)
        if dtype == BOOL:
            return u > 0.5
        if dtype.is_floating_point:
            return (u * 6 - 3).to(dtype)
        return (u * 19 - (0 if dtype == U8 else 9)).floor().to(dtype)

    def pick(self, accept: Callable[[Tensor], bool], exact: bool = False) -> int | None:
        """A value that fits, later ones more often; `exact`: one without error."""
        fits = [n for n, x in enumerate(self.values) if accept(x) and (not exact or self.exact[n])]
        return self.rng.choice(fits + fits[-2:]) if fits else None

    def axis(self, n: int) -> int:
        return self.rng.randrange(-self.values[n].dim(), self.values[n].dim())

    def add(self, step: Step) -> bool:
        """The step, if eager takes it and its result is of moderate size."""
        try:
            with torch.no_grad():
                out = step.fn(*(self.values[n] for n in step.reads))
        except (RuntimeError, IndexError, ValueError, NotImplementedError):
            return False
        finite = out.double().nan_to_num(0, 0, 0)
        if out.numel() > MOST or bool((finite.abs() > 1e4).any()):
            return False
        self.graph.steps.append(step)
        self.values.append(out)
        self.exact.append(step.exact and all(self.exact[n] for n in step.reads))
        return True


Rule = Callable[[Growing], "Step | None"]


def grown(seed: int) -> Graph:
    g = Growing(seed)
    wanted = g.rng.randint(2, STEPS)
    for _ in range(10 * wanted):
        step = g.rng.choice(RULES)(g)
        if step is not None:
            g.add(step)
        if len(g.graph.steps) == wanted:
            break
    return g.graph


# ------------------------------------------------------------------ steps
SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "sin": torch.sin, "cos": torch.cos, "relu": torch.relu,
    "gelu": F.gelu, "silu": F.silu, "atan": torch.atan, "asinh": torch.asinh, "erf": torch.erf,
    "decay": lambda a: torch.exp(-a.abs()), "root": lambda a: (a.abs() + 1).sqrt(),
    "log1p": lambda a: torch.log1p(a.abs()), "inverse": lambda a: 1 / (a.abs() + 1),
    "softplus": F.softplus, "hardswish": F.hardswish, "elu": F.elu, "square": lambda a: a.tanh() ** 2,
}  # fmt: skip
EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": lambda a: -a, "abs": torch.abs, "copy": lambda a: a.clone(), "half": lambda a: a * 0.5,
    "plus": lambda a: a + 1, "clamp": lambda a: a.clamp(0, 2), "minus": lambda a: 2 - a,
}  # fmt: skip
JUMPS: dict[str, Callable[[Tensor], Tensor]] = {
    "floor": torch.floor, "round": torch.round, "trunc": torch.trunc, "sign": torch.sign,
    "isnan": torch.isnan, "not": torch.logical_not, "positive": lambda a: a > 0, "third": lambda a: a // 3,
    "rest": lambda a: a % 3, "to i64": lambda a: a.long(), "to u8": lambda a: a.abs().to(U8),
    "to i8": lambda a: a.to(torch.int8), "to f64": lambda a: a.double(), "to bf16": lambda a: a.bfloat16(),
    "to f16": lambda a: a.half(), "to f32": lambda a: a.float(), "to bool": lambda a: a.bool(),
}  # fmt: skip
PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "max": torch.maximum, "min": torch.minimum,
    "over": lambda a, b: a / (b.abs() + 1), "lerp": lambda a, b: a + 0.25 * (b - a),
    "hypot": lambda a, b: torch.hypot(a.float(), b.float()),
}  # fmt: skip
CHOICES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "lt": torch.lt, "ge": torch.ge, "eq": torch.eq, "ne": torch.ne, "and": torch.logical_and,
    "xor": torch.logical_xor, "choose": lambda a, b: torch.where(a > b, a, b),
    "keep": lambda a, b: torch.where(b > 0, a, 0), "atan2": lambda a, b: torch.atan2(a, b),
}  # fmt: skip
BITS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bits and": torch.bitwise_and, "bits or": torch.bitwise_or, "bits xor": torch.bitwise_xor,
    "left": lambda a, b: a << (b & 3), "right": lambda a, b: a >> (b & 3),
    "floor div": lambda a, b: a // (b.abs() % 5 + 1), "mod": lambda a, b: a % (b.abs() % 5 + 1),
}  # fmt: skip
REDUCED: dict[str, Callable[..., Tensor]] = {
    "sum": torch.sum, "mean": torch.mean, "amax": torch.amax, "amin": torch.amin, "var": torch.var,
    "logsumexp": torch.logsumexp, "prod": lambda a, d, keepdim: a.tanh().prod(d, keepdim),
}  # fmt: skip
ALONG: dict[str, Callable[[Tensor, int], Tensor]] = {
    "softmax": lambda a, d: a.softmax(d), "log_softmax": lambda a, d: a.log_softmax(d),
    "cumsum": lambda a, d: a.cumsum(d), "cumprod": lambda a, d: a.tanh().cumprod(d),
    "normalize": lambda a, d: a / (a.abs().sum(d, keepdim=True) + 1),
}  # fmt: skip
PLACES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "argmax": lambda a, d: a.argmax(d), "argmin": lambda a, d: a.argmin(d, keepdim=True),
    "sort": lambda a, d: a.sort(dim=d, stable=True).values,
    "argsort": lambda a, d: a.sort(dim=d, descending=True, stable=True).indices,
    "top": lambda a, d: a.topk(1, d).values, "any": lambda a, d: a.any(d), "all": lambda a, d: a.all(d),
    "median": lambda a, d: a.median(d).values, "count": lambda a, d: torch.count_nonzero(a, d),
}  # fmt: skip


def _is_float(a: Tensor) -> bool:
    return a.is_floating_point()


def _is_number(a: Tensor) -> bool:
    return a.dtype != BOOL


def _one(
    table: dict[str, Callable[..., Tensor]], accept: Callable[[Tensor], bool], jumps: bool, exact: bool
) -> Rule:
    def rule(g: Growing) -> Step | None:
        name, n = g.rng.choice(list(table)), g.pick(accept, jumps)
        return None if n is None else Step(name, table[name], (n,), exact)

    return rule


def _two(
    table: dict[str, Callable[..., Tensor]], accept: Callable[[Tensor], bool], jumps: bool, exact: bool
) -> Rule:
    def rule(g: Growing) -> Step | None:
        name = g.rng.choice(list(table))
        a, b = g.pick(accept, jumps), g.pick(accept, jumps)
        return None if a is None or b is None else Step(name, table[name], (a, b), exact)

    return rule


def _axis(
    table: dict[str, Callable[..., Tensor]], accept: Callable[[Tensor], bool], jumps: bool, exact: bool
) -> Rule:
    def rule(g: Growing) -> Step | None:
        name, n = g.rng.choice(list(table)), g.pick(lambda a: accept(a) and a.dim() > 0, jumps)
        if n is None:
            return None
        d, fn = g.axis(n), table[name]
        return Step(f"{name} {d}", lambda a: fn(a, d), (n,), exact)

    return rule


def _reduce(g: Growing) -> Step | None:
    n = g.pick(lambda a: _is_float(a) and a.dim() > 0)
    if n is None:
        return None
    name, rank, keep = g.rng.choice(list(REDUCED)), g.values[n].dim(), g.rng.random() < 0.5
    axes: Any = sorted(g.rng.sample(range(rank), g.rng.randint(1, rank)))
    axes = axes[0] if name == "prod" else axes
    fn = REDUCED[name]
    return Step(f"{name} {axes}{' kept' * keep}", lambda a: fn(a, axes, keepdim=keep), (n,), False)


def _move(g: Growing) -> Step | None:
    """One of the operators that only move elements."""
    n = g.pick(lambda a: a.dim() > 0)
    if n is None:
        return None
    x, r = g.values[n], g.rng
    d, k = g.axis(n), r.randint(-3, 3)
    size, perm = x.shape[d], r.sample(range(x.dim()), x.dim())
    start, step = r.randint(0, size), r.choice((1, 1, 2, 3))
    moves: dict[str, Callable[[Tensor], Tensor]] = {
        f"permute {perm}": lambda a: a.permute(perm), f"flip {d}": lambda a: a.flip(d),
        f"roll {k} {d}": lambda a: a.roll(k, d), "flatten": lambda a: a.reshape(-1),
        f"unsqueeze {d}": lambda a: a.unsqueeze(d), "squeeze": lambda a: a.squeeze(),
        f"narrow {d} {start}": lambda a: a.narrow(d, start, size - start),
        f"stride {d} {step}": lambda a: a.transpose(0, d)[::step].transpose(0, d),
        f"repeat {d}": lambda a: a.repeat_interleave(2, d), f"double {d}": lambda a: torch.cat([a, a], d),
        "tile": lambda a: a.repeat(2, *[1] * a.dim()),
        f"pad {k}": lambda a: F.pad(a, (k, 1), value=1) if a.dtype != BOOL else F.pad(a, (1, 1)),
        "reflect": lambda a: F.pad(a.float()[None, None].flatten(2), (1, 1), mode="reflect"),
        f"chunk {d}": lambda a: a.chunk(2, d)[0], f"last {d}": lambda a: a.select(d, -1),
        "stretch": lambda a: a.expand(2, *a.shape), f"windows {d}": lambda a: a.unfold(d, 2, 1),
        "split": lambda a: a.reshape(*a.shape[:-1], 2, -1),
    }  # fmt: skip
    text = r.choice(list(moves))
    return Step(text, moves[text], (n,), True)


def _index(g: Growing) -> Step | None:
    """Elements picked or replaced by indices."""
    n = g.pick(lambda a: a.dim() > 0 and a.shape[0] > 0 and a.dtype != BOOL)
    if n is None:
        return None
    x, r = g.values[n], g.rng
    d = g.axis(n)
    if not x.shape[d]:
        return None
    few = torch.randint(0, x.shape[d], (r.choice((1, 2, 5)),), generator=g.draw)
    rows = torch.randperm(x.shape[0], generator=g.draw)[:2]
    whole = torch.randint(0, x.shape[d], tuple(x.shape), generator=g.draw)
    listed = few.tolist()
    table: dict[str, Callable[[Tensor], Tensor]] = {
        f"index_select {d} {listed}": lambda a: a.index_select(d, few),
        f"index {rows.tolist()}": lambda a: a[rows], f"gather {d}": lambda a: a.gather(d, whole),
        f"scatter_add {d}": lambda a: a.scatter_add(d, whole, a),
        f"amax {d}": lambda a: a.scatter_reduce(d, whole, a, "amax"),
        f"put {rows.tolist()}": lambda a: a.index_put((rows,), a[:1]),
        f"index_add {d} {listed}": lambda a: a.index_add(d, few, a.index_select(d, few)),
        "fill": lambda a: a.masked_fill(a > 1, 1), "triangle": lambda a: a.tril(),
    }  # fmt: skip
    text = r.choice(list(table))
    return Step(text, table[text], (n,), not text.startswith(("scatter_add", "index_add")))


def _small(a: Tensor) -> Tensor:
    return a.tanh() if a.is_floating_point() else a % 3


def _product(g: Growing) -> Step | None:
    n = g.pick(lambda a: a.dim() >= 2 and _is_number(a))
    if n is None:
        return None
    by_itself: Callable[[Tensor], Tensor] = lambda a: _small(a) @ _small(a).mT  # noqa: E731
    of_rows: Callable[[Tensor], Tensor] = lambda a: a.flatten(1)[0] @ a.flatten(1)[-1]  # noqa: E731
    fn = g.rng.choice((by_itself, of_rows))
    return Step("product", fn, (n,), False)


def _pool(g: Growing) -> Step | None:
    n = g.pick(lambda a: a.dim() in (3, 4) and a.dtype == torch.float32 and min(a.shape) > 1)
    if n is None:
        return None
    name = g.rng.choice(("max", "avg", "norm", "up"))
    table: dict[str, Callable[[Tensor], Tensor]] = {
        "max": lambda a: F.max_pool2d(a, 2, 1), "avg": lambda a: F.avg_pool2d(a, 2, 1, 1, False, False),
        "norm": lambda a: F.group_norm(a, 1),
        "up": lambda a: F.interpolate(a.flatten(2), scale_factor=2),
    }  # fmt: skip
    return Step(f"pool {name}", table[name], (n,), name == "max")


RULES: tuple[Rule, ...] = (
    _one(SMOOTH, _is_float, False, False), _one(EXACT, _is_number, False, True),
    _one(JUMPS, lambda a: True, True, True), _two(PAIRS, _is_number, False, True),
    _two(PAIRS, _is_number, False, True), _two(CHOICES, lambda a: True, True, True),
    _two(BITS, lambda a: a.dtype in INTS, True, True), _axis(ALONG, _is_float, False, False),
    _axis(PLACES, _is_number, True, True), _reduce, _reduce, _move, _move, _move, _index, _product, _pool,
)  # fmt: skip


# ------------------------------------------------------------------ comparing
def outcome(graphs: Sequence[Graph], stages: Sequence[str]) -> Iterator[tuple[Graph, str]]:
    """What is not equal to eager, or refused, and how; all graphs at once as far as that goes."""
    named: Cases = {str(g): (g.case(), torch.float32) for g in graphs}
    try:
        found = problems(named, stages)
        if not found:
            return
    except TilewrightError:
        pass
    for g in graphs:
        try:
            lines = problems({str(g): (g.case(), torch.float32)}, stages)
            yield from ((g, f"wrong: {line}") for line in lines[:1])
        except TilewrightError as e:
            yield g, f"refused: {str(e)[:300]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--stages", default="graph,tile")
    args = parser.parse_args()
    kinds = {"wrong": 0, "refused": 0}
    for start in range(args.first, args.first + args.count, 20):
        graphs = [grown(seed) for seed in range(start, min(start + 20, args.first + args.count))]
        for graph, what in outcome(graphs, args.stages.split(",")):
            kinds[what.split(":")[0]] += 1
            print(f"{graph}\n  {what}", flush=True)
    equal = args.count - sum(kinds.values())
    print(f"{args.count} graphs: {equal} equal, {kinds['refused']} refused, {kinds['wrong']} wrong")


if __name__ == "__main__":
    main()
