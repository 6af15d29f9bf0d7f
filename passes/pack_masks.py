"""Which tokens the mask of an attention keeps: found by evaluating the mask, not by its spelling.

In: a graph with recognised attention. Out: for each self-attention over whole sequences, the value [B, S]
that is not zero where a token is kept, or `Declined`. The mask is evaluated for several such values. It must
let every kept token see the kept tokens of its sequence and no others; what it lets other tokens see is not
looked at, since they are not computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.errors import TilewrightError
from tilewright.ir.graph.core import Graph, Op, Value
from tilewright.ir.interp.graph import Interpreter
from tilewright.ir.numbers import hold
from tilewright.ir.ops.attention import extra_names
from tilewright.ir.ops.common import same_shape
from tilewright.ir.types import evaluate_dim
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.patterns import View
from tilewright.passes.recognise_masks import positions
from tilewright.passes.rewrite import Declined

Bools = NDArray[np.bool_]
#: sequences of a batch whose number is known at run time only
BATCH = 3
#: a score that a mask lowers by this much is hidden: it is the range of f16
HIDDEN = -6e4
#: attributes that give scores a meaning beyond which keys are seen
OTHER = ("causal", "window", "sinks", "flat")


def kept_by(view: View, op: Op) -> str:
    """The value [B, S] that is not zero for the tokens that an attention keeps. Declined with a reason."""
    q, k = (view.type(o) for o in op.operands[:2])
    if any(op.attr(name) for name in OTHER):
        raise Declined("it is causal, has a window or sinks")
    if not same_shape(q.shape[:2], k.shape[:2]):
        raise Declined("queries and keys are different tokens")
    masks = [
        o
        for name, o in zip(extra_names(dict(op.attrs)), op.operands[3:], strict=True)
        if name in ("mask", "bias", "padding")
    ]
    if len(masks) != 1 or len(op.operands) != 4:
        raise Declined("it has no mask" if not masks else "it has a bias besides its mask")
    reasons = []
    for value in _candidates(view, masks[0], q.shape[:2]):
        try:
            _check(view, masks[0], value, q.shape[:2])
            return value
        except Declined as why:
            reasons.append(str(why))
    raise Declined(reasons[0] if reasons else "its mask does not come from one number for each token")


def _candidates(view: View, mask: str, shape: Sequence[object]) -> Iterator[str]:
    """Values [B, S] that the mask is made of: inputs first, then in the order of the graph."""
    behind = set(_behind(view, mask, ""))
    inputs = [f"%{v.name}" for v in view.graph.inputs]
    made = [f"%{r.name}" for op in view.graph.ops for r in op.results]
    for o in (*inputs, *made):
        if o in behind and same_shape(view.type(o).shape, shape):
            yield o


def _behind(view: View, operand: str, stop: str) -> Iterator[str]:
    """An operand and the values that it is made of, but nothing behind `stop`."""
    wanted, seen = [operand], set[str]()
    while wanted:
        o = wanted.pop()
        if o in seen or o[0] != "%":
            continue
        seen.add(o)
        yield o
        op = view.producer(o)
        wanted += op.operands if op is not None and o != stop else ()


# ------------------------------------------------------------------ evaluation
def _check(view: View, mask: str, value: str, shape: Sequence[object]) -> None:
    """Raise Declined unless the mask shows to kept tokens what `value` keeps, for several of its values."""
    needed = set(_behind(view, mask, value))
    if value not in needed:
        raise Declined("its mask does not come from one number for each token")
    inputs = needed & {f"%{v.name}" for v in view.graph.inputs}
    if inputs - {value}:
        raise Declined(f"its mask depends on {', '.join(sorted(inputs - {value}))} besides {value}")
    ops = [
        op for op in view.graph.ops
        if value not in (names := {f"%{r.name}" for r in op.results}) and names & needed
    ]  # fmt: skip
    sizes = _sizes(view, shape, ops)
    batch, tokens = (evaluate_dim(d, sizes) for d in shape)
    for kept in _probes(batch, tokens):
        x = _evaluated(view, ops, mask, value, kept, sizes)
        seen = np.broadcast_to(_seen(x), (batch, x.shape[1], tokens, tokens))
        wrong = (seen != kept[:, None, None, :]) & kept[:, None, :, None]
        if wrong.any():
            raise Declined(f"its mask shows a token other tokens than those that {value} keeps")


def _sizes(view: View, shape: Sequence[object], ops: Sequence[Op]) -> dict[str, int]:
    """Values for all symbols: few sequences, and more tokens than any number in the mask."""
    if not view.module.symbols:
        return {}
    tokens = positions(ops)
    sizes = {name: tokens for name, _ in view.module.symbols}
    batch = {str(s) for s in getattr(shape[0], "free_symbols", ())}
    for name in batch - {str(s) for s in getattr(shape[1], "free_symbols", ())}:
        sizes[name] = BATCH
    return sizes


def _probes(batch: int, tokens: int) -> Iterator[Bools]:
    """All tokens, a different number of leading tokens for each sequence, and any of them."""
    rng = np.random.default_rng(0)
    yield np.ones((batch, tokens), bool)
    yield np.arange(tokens) < rng.integers(1, max(tokens, 2), (batch, 1))
    for _ in range(4):
        yield rng.random((batch, tokens)) < 0.5


def _evaluated(
    view: View, ops: Sequence[Op], mask: str, value: str, kept: Bools, sizes: Mapping[str, int]
) -> NDArray[Any]:
    given = Value(value[1:], view.type(value))
    graph = Graph("probe", (given,), tuple(ops), (mask,), ("mask",))
    symbols = tuple((name, replace(r, lo=0, hi=None)) for name, r in view.module.symbols)
    module = replace(view.module, graphs=(graph,), symbols=symbols)
    inputs = {given.name: hold(kept, given.type.dtype) if given.type.dtype != "bool" else kept}
    try:
        x: NDArray[Any] = Interpreter(module, WeightStore()).run("probe", inputs, symbols=sizes)["mask"]
    except (TilewrightError, OSError, ValueError) as why:
        raise Declined(f"its mask cannot be evaluated: {why}") from why
    return x.reshape((*x.shape[:1], 1, 1, *x.shape[1:])) if x.ndim == 2 else x


def _seen(x: NDArray[Any]) -> Bools:
    """Which keys are seen. Declined if the mask adds anything else to scores."""
    if x.dtype == np.bool_:
        return x
    if not ((x == 0) | (x < HIDDEN)).all():
        raise Declined("its mask adds to scores that it does not hide")
    seen: Bools = x == 0
    return seen
