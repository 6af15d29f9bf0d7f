"""Rules of ops, and what passes do with an op that they have never heard of: its records are all they ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Module, Op
from tilewright.ir.ops.base import OPS, OpDef, OpTypeError, register_op
from tilewright.ir.ops.common import dense, keep_axes, mix_axes
from tilewright.ir.types import tensor
from tilewright.passes.channel_factors import fold_of
from tilewright.passes.driver import Options, run_passes
from tilewright.passes.patterns import View
from tilewright.passes.rules.record import RULES, Canonical, OpRules, register_rules, rules_of

HALVED = OpDef(
    "halved",
    ("x",),
    {},
    lambda types, at: [dense(types[0])],
    lambda args, at, results: np.asarray(args[0] * 0.5, np.float32),
    lambda types, at: [keep_axes(types[0])],
    lambda types, at: 0,
    linear=((0,),),
)
CHECKED = Options(verify_each=True, check_each=True)


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    ops, rules = dict(OPS), dict(RULES)
    register_op(HALVED)
    yield
    for held, before in ((OPS, ops), (RULES, rules)):
        held.clear()
        held.update(before)  # type: ignore[arg-type]


def _model() -> Module:
    """A lookup, `halved`, a norm and two linears, over batch and sequence."""
    b = GraphBuilder("forward")
    b.symbol("B", 1, 4)
    b.symbol("S", 1, 16)
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> str:
        return b.inline(name, rng.standard_normal(shape).astype(np.float32))

    x = b.op("gather", weight("embed", 12, 16), b.add_input("ids", tensor("i32", "B", "S")))
    x = b.op("rms_norm", b.op("halved", x), weight("norm", 16), eps=1e-5)
    b.output(b.op("linear", b.op("halved", b.op("linear", x, weight("a", 16, 16))), weight("b", 8, 16)), "y")
    return b.module()


def _names(module: Module) -> list[str]:
    return [op.name for op in module.graphs[0].ops]


def test_a_rotation_goes_through_a_linear_op() -> None:
    result = run_passes(_model(), "rotate{online=false}", CHECKED)
    assert any("rotate applied" in str(n) for n in result.notes)
    changed = {w.name for w, old in zip(result.module.weights, _model().weights, strict=True) if w != old}
    assert changed == {"embed", "norm", "a"}


def test_a_rotation_stops_at_an_op_that_is_not_linear() -> None:
    OPS["halved"] = replace(HALVED, linear=())
    result = run_passes(_model(), "rotate", CHECKED)
    assert [n.reason for n in result.notes] == ["halved reads the residual stream"]


def test_a_factor_goes_through_a_linear_op_on_the_way_to_rows() -> None:
    OPS["halved"] = replace(HALVED, expr=lambda p, x: p.mul(x, p.const(0.5)))
    module = _model()
    x = module.graphs[0].ops[-1].operands[0]
    assert fold_of(View(module, module.graphs[0]), x, {"b"}).weight == "a"


def test_axis_roles_say_what_becomes_of_tokens() -> None:
    assert _names(run_passes(_model(), "recognise, flatten-tokens", CHECKED).module) == _names(_model())
    OPS["halved"] = replace(HALVED, axes=lambda types, at: [mix_axes(types[0], [1])])
    with pytest.raises(Exception, match="op halved mixes tokens: it mixes axis 1"):
        run_passes(_model(), "recognise, flatten-tokens")


def test_rules_of_a_new_op_are_tried() -> None:
    def dropped(r: Canonical, op: Op) -> str:
        return op.operands[0]

    register_rules(OpRules("halved", (dropped,)))
    result = run_passes(_model(), "canonicalize")
    assert "halved" not in _names(result.module) and "canonicalize: dropped applied" in str(result.notes[0])


def test_rules_name_an_op_once() -> None:
    with pytest.raises(OpTypeError, match="op 'reshape' has rules already"):
        register_rules(OpRules("reshape"))
    with pytest.raises(OpTypeError, match="rules for 'nothing', which is not an op: register the op first"):
        register_rules(OpRules("nothing"))
    assert rules_of("halved") == OpRules("halved")
