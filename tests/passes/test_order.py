"""The order of passes: a pass out of place is refused, with what is missing and which pass provides it.

Every pass of every pipeline is moved, and the properties that passes declare to provide hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.compiler.families import write_model
from tests.ir.graph_cases import mlp
from tilewright.capture import capture_directory
from tilewright.ir.graph.core import Module
from tilewright.passes.base import PASSES, PassError, find_pass, parse_pipeline
from tilewright.passes.driver import run_passes
from tilewright.passes.facts import FACTS, check_order, observed, wanted
from tilewright.passes.pipelines import ENDS
from tilewright.passes.record import Record
from tilewright.recipe import Recipe, resolve_recipe

RECIPES = {
    "decoder": ("decoder", resolve_recipe("w4a8")),
    "decoder-rotated": ("decoder", resolve_recipe("w4a8", rotate="online")),
    "decoder-calibrated": ("decoder", resolve_recipe(weights="awq(int4(group=32))")),
    "plain": ("plain", resolve_recipe("w4a8")),
    "plain-reduced": ("plain", resolve_recipe("w4a8", tokens="evit(keep=0.7)")),
    "plain-calibrated": ("plain", resolve_recipe(weights="awq(int4(group=32))")),
}
#: every day; the others take turns
QUICK = ("decoder-calibrated", "plain")


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Module:
    return capture_directory(write_model(tmp_path_factory.mktemp("llama"), "llama"))


def names(kind: str, recipe: Recipe) -> list[str]:
    return [p.name for p in parse_pipeline(recipe.pipeline(kind, lowering=True))]


def refusal(passes: Sequence[str], module: Module, kind: str) -> str:
    """What the order of passes is refused with; empty if it is accepted."""
    try:
        check_order(parse_pipeline(", ".join(passes)), module, ENDS[kind])
    except PassError as e:
        return str(e)
    return ""


def moved(passes: Sequence[str], start: int, to: int) -> list[str]:
    rest = [*passes[:start], *passes[start + 1 :]]
    return [*rest[:to], passes[start], *rest[to:]]


@pytest.mark.parametrize(
    "case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in RECIPES]
)
def test_every_pass_out_of_place_is_refused(case: str, module: Module) -> None:
    """Each pass has places where it is refused, among them the end of the pipeline; passes that give
    something are also missed when they are left out."""
    kind, recipe = RECIPES[case]
    passes = names(kind, recipe)
    assert refusal(passes, module, kind) == ""
    for n, name in enumerate(passes):
        refused = {to: refusal(moved(passes, n, to), module, kind) for to in range(len(passes))}
        assert refused[n] == ""
        if name not in ("expand-encodings", "plan-memory"):
            assert refused[len(passes) - 1], f"{name} may come last"
        elsewhere = [text for to, text in refused.items() if text]
        assert len(elsewhere) >= 3, f"{name} may stand nearly anywhere"
        assert all("pass error: needs '" in text and "help: " in text for text in elsewhere)
    for name in {"recognise", "flatten-tokens", "incrementalize", "select-rows", "fuse", "lower"} & set(
        passes
    ):
        left = [p for p in passes if p != name]
        assert name in refusal(left, module, kind).partition("help: put ")[2], name


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("select-rows",
         ("select-rows: pass error: needs 'incremental' (graph @step reads caches and gives the "
         "logits of every token), which no earlier pass provides\n  help: put incrementalize before it")),
        ("canonicalize, recognise, flatten-tokens, recognise",
         ("recognise: pass error: needs 'canonical' (nothing is "
         "left to fold, merge or drop), which does not hold after flatten-tokens\n"
         "  help: move it before flatten-tokens or put canonicalize before it, after flatten-tokens")),
        ("canonicalize, fuse, canonicalize",
         ("canonicalize: pass error: needs 'unfused' (no op belongs to a region "
         "yet), which does not hold after fuse\n  help: move it before fuse")),
        ("plan-memory",
         ("plan-memory: pass error: needs 'program' (tile programs and plans), which no earlier pass "
         "provides\n  help: put lower before it")),
    ],
)  # fmt: skip
def test_messages(passes: str, message: str, module: Module) -> None:
    with pytest.raises(PassError) as e:
        run_passes(module, passes)
    assert str(e.value) == message


def test_a_pipeline_that_ends_too_early_is_refused() -> None:
    with pytest.raises(PassError, match=r"the end of the pipeline: pass error: needs 'expanded' \("):
        run_passes(mlp(), 'canonicalize, encode-weights{weights="f32"}, fuse, lower', ends=ENDS["plain"])


def test_what_is_said_to_hold_holds_after_every_pass(module: Module) -> None:
    """The facts that the check counts on, against the IR of each stage of a whole compile."""
    for case in ("decoder", "decoder-rotated"):
        kind, recipe = RECIPES[case]
        passes = parse_pipeline(recipe.pipeline(kind, lowering=True))
        record = run_passes(module, passes)
        known: dict[str, bool] = {f: observed(module, f) for f in FACTS}
        for p, stage in zip(passes, record.stages[1:], strict=True):
            known |= dict.fromkeys(p.takes_away, False) | dict.fromkeys(p.gives, True)
            if p.name == "lower":
                known = {f: k and f in ("program", "row-selected") for f, k in known.items()}
            wrong = [f for f, holds in known.items() if holds and not observed(stage.ir, f)]
            assert not wrong, f"after {p.name}: {wrong}"


def test_facts_are_those_that_passes_need() -> None:
    """Nothing is needed that nothing gives, and no fact is kept that nothing needs."""
    classes = [find_pass(name) for name in PASSES]
    needed = {n for c in classes for n in (*c.needs, c.works_on)} | {n for e in ENDS.values() for n in e}
    assert needed == set(FACTS)
    assert {n for c in classes for n in (*c.gives, *c.takes_away)} <= set(FACTS)
    assert all(
        "unfused" in c.needs
        for c in classes
        if c.works_on == "graphs" and c.name not in ("lower", "specialize")
    )
    assert wanted(find_pass("lower")()) >= {"graphs", "fused"}


def test_the_record_says_where_ops_and_calls_come_from(module: Module) -> None:
    """Every op of the last graphs names the passes that made it, and the ops of all calls are all ops but
    views and constants."""
    record: Record = run_passes(module, resolve_recipe("w4a8").pipeline("decoder", lowering=True))
    captured = {r.name for g in module.graphs for op in g.ops for r in op.results}
    for o in record.origins():
        assert o.passes or not o.value or o.value in captured, o
        assert set(o.passes) <= {s.name for s in record.stages}
    seen = {o.value for p in record.program.plans for c in p.calls for o in record.origins_of(p.name, c)}
    ops = [op for g in record.graphs.graphs for op in g.ops if op.region is not None]
    solid = {op.results[0].name for op in ops if op.results}
    assert solid <= seen
    attend = next(o for o in record.origins() if o.op == "attend_cache")
    assert attend.loc is not None and "incrementalize" in attend.passes
    assert [s.name for s in record.stages if s.seconds == 0.0] == ["input"]


def test_costs_are_in_the_symbols_of_the_graph(module: Module) -> None:
    record = run_passes(module, resolve_recipe("f32").pipeline("decoder"))
    cost = record.stages[-1].cost()["step"]
    assert {str(s) for s in cost.free_symbols} == {"T", "R", "context"}  # type: ignore[union-attr]
    assert record.stage("fuse").cost() == record.stages[-1].cost()
