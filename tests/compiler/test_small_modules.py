"""Small modules in families against eager: the graph, its tile programs, and compiled code.

Every day some families and element types take their turn, picked by TW_SLOW_SEED, and a few cases of all of
them are compiled; `--slow all` runs everything but the compilation of each case, which is
`python -m tests.compiler.small_modules.run --stages compiled`.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.export import Dim
from torch.nn import functional as F

import tilewright as tw
from tests.compiler.random_graphs import Graph, grown, outcome
from tests.compiler.small_modules import FAMILIES
from tests.compiler.small_modules.base import NAMES
from tests.compiler.small_modules.core import STAYS, become
from tests.compiler.small_modules.run import Cases, difference, problems, refusal, supported
from tests.compiler.ulp import STATED, Error, measured
from tilewright.ir.interp.plan import PlanRunner

#: families with an element type that any of their cases has
PAIRS = [
    (title, d) for d in NAMES for title, cases in FAMILIES.items() if supported(cases, d)
]  # fmt: skip
TODAY, COMPILED, RANDOM, REFUSED = 2, 16, 16, 5
#: functions of the day, and how many values apart their operands are
FUNCTIONS, EVERY = 6, 40_009


def seed() -> random.Random:
    return random.Random(int(os.environ["TW_SLOW_SEED"]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "pair" in metafunc.fixturenames:
        every = metafunc.config.getoption("--slow") == "all"
        pairs = PAIRS if every else seed().sample(PAIRS, TODAY)
        metafunc.parametrize("pair", pairs, ids=[f"{t}, {NAMES[d]}" for t, d in pairs])


def test_a_family_with_an_element_type(pair: tuple[str, torch.dtype]) -> None:
    title, dtype = pair
    found = problems(supported(FAMILIES[title], dtype), ("graph", "tile"))
    assert not found, "\n".join(found)


def test_some_cases_compiled() -> None:
    every: Cases = {
        f"{title}, {NAMES[d]}: {name}": chosen
        for title, d in PAIRS
        for name, chosen in supported(FAMILIES[title], d).items()
    }
    names = seed().sample(list(every), COMPILED)
    found = problems({n: every[n] for n in names}, ("compiled",))
    assert not found, "\n".join(found)


def test_what_is_refused_says_why() -> None:
    refused = {n: c for cases in FAMILIES.values() for n, c in cases.items() if c.refused}
    for name in seed().sample(list(refused), REFUSED):
        c = refused[name]
        message = refusal(c, c.dtypes[0])
        assert c.refused in message and ".py:" in message, f"{name}: {message or 'is not refused'}"


def test_every_core_operator_is_imported_or_listed() -> None:
    found = become()
    assert [name for name, what in found.items() if what == "unknown"] == []
    assert {name for name, what in found.items() if what == "stays"} == set(STAYS)


def test_the_table_has_as_many_cases_as_it_should() -> None:
    assert sum(len(cases) for cases in FAMILIES.values()) >= 300
    assert len({name for cases in FAMILIES.values() for name in cases}) == sum(map(len, FAMILIES.values()))


# ------------------------------------------------------------------ random graphs
def test_random_graphs() -> None:
    """A few of those that `python -m tests.compiler.random_graphs` runs by the thousand."""
    first = 10_000 + 100 * int(os.environ["TW_SLOW_SEED"])
    graphs = [grown(first + n) for n in range(RANDOM)]
    found = [f"{g}\n  {what}" for g, what in outcome(graphs, ("graph", "tile"))]
    assert not [f for f in found if "\n  wrong" in f], "\n".join(found)


class Nudged:
    """A graph whose results are off by a little in the first call, which gives eager's."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.calls = graph, 0

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.calls += 1
        return tuple(r * (1.01 if self.calls == 1 else 1) for r in self.graph(*inputs))


def _is_plain(x: torch.Tensor) -> bool:
    return x.is_floating_point() and bool(x.isfinite().all()) and bool(x.abs().sum() > 0)


def test_a_wrong_result_is_found() -> None:
    graph = next(g for g in map(grown, range(100)) if all(map(_is_plain, g(*g.inputs))))
    case = replace(graph.case(), fn=Nudged(graph))
    (line, *_) = problems({"nudged": (case, torch.float32)})
    assert line.startswith("graph: nudged r0_0: ") and "expected" in line


# ------------------------------------------------------------------ errors of functions
def test_errors_of_functions_are_as_stated() -> None:
    """A few functions over values that no other day takes."""
    names = tuple(seed().sample(list(STATED), FUNCTIONS))
    for name, (ours, _) in measured(EVERY, seed().randrange(EVERY), names).items():
        assert ours.ulp <= STATED[name], f"{name} of {ours.at!r} is off by {ours.ulp} ulp"
        assert ours.wrong == 0, f"{name} of {ours.example!r} is of another kind than exactly"
        assert ours.tiny <= 2 or name == "sigmoid", name


def test_a_larger_error_is_found() -> None:
    x = np.float32([1.0, 2.0, 3.0])
    error = Error()
    error.add(x, np.nextafter(np.nextafter(x, np.float32(9)), np.float32(9)), x.astype(np.float64))
    assert (error.ulp, error.wrong) == (2, 0)
    error.add(x, np.float32([np.nan, 2, np.inf]), x.astype(np.float64))
    assert error.wrong == 2


# ------------------------------------------------------------------ dynamic sizes
DYNAMIC = {
    "pad": lambda x: F.pad(x, (1, 2, 2, 1), value=3), "roll": lambda x: x.roll(2, 0),
    "sort": lambda x: x.sort(dim=0, stable=True)[0], "softmax": lambda x: x.softmax(0),
    "norm": lambda x: F.group_norm(x, 2), "median": lambda x: x.median(0).values,
    "put": lambda x: x.index_put((torch.tensor([0, 0]),), x[:1], True),
    "bilinear": lambda x: F.interpolate(x[None, None], scale_factor=2, mode="bilinear"),
    "least": lambda x: x[:, 0].argmin(0, keepdim=True),
}  # fmt: skip


class Dynamic(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: fn(x).clone() for name, fn in DYNAMIC.items()}


def test_dynamic_sizes() -> None:
    """A region whose results have no axis in common computes all rows of a dynamic axis."""
    size = ({0: Dim("B", min=3, max=64)},)
    compiled = tw.compile(Dynamic(), example_inputs=(torch.randn(5, 6),), dynamic_shapes=size, recipe="f32")
    for rows in (3, 17):
        x = torch.randn(rows, 6)
        got = PlanRunner(compiled.program, compiled.store).run("forward", {"x": x.numpy()})
        for name, want in Dynamic()(x).items():
            assert not difference(got[name], want), f"{name} of {rows} rows"
