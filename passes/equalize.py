"""equalize: folds the channel factors that calibration found into the weights.

What a norm or linear computes is divided by the factors that the next linear is multiplied by, so the model
computes the same.

In: a module whose linears are merged; the weights' store, which holds the changes by weight name. Out: the
same graph over changed weights. Which factors are good is the solvers' business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tilewright.ir.graph.core import Apply, Module, Stored, Weight, WeightExpr
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.base import Context, Pass
from tilewright.passes.channel_factors import Change


@dataclass(frozen=True)
class Equalize(Pass):
    """Fold the channel factors chosen by awq or smoothquant into the weights."""

    name: ClassVar[str] = "equalize"
    needs: ClassVar[frozenset[str]] = frozenset({"unfused", "unsolved-weights"})

    def run(self, module: Module, ctx: Context) -> Module:
        store = ctx.weights
        if not isinstance(store, WeightStore):
            return module
        found = {n: c for n, c in store.changes.items() if isinstance(c, Change)}
        for name in (w.name for w in module.weights if w.name in found):
            ctx.applied("equalize", f"@{name}")
        return replace(
            module,
            weights=tuple(
                _changed(w, found[w.name], store) if w.name in found else w for w in module.weights
            ),
        )


def _changed(w: Weight, change: Change, store: WeightStore) -> Weight:
    factors = [_kept(f"{w.name}.{n}", mul, store) for n, mul in enumerate(change.muls)]
    source: WeightExpr = Apply("mul", (w.source, *factors))
    if change.add is not None:
        source = Apply("add", (source, _kept(f"{w.name}.add", change.add, store)))
    return replace(w, source=source)


def _kept(key: str, values: object, store: WeightStore) -> Stored:
    store.memory[f"equalize:{key}"] = values  # type: ignore[assignment]
    return Stored("memory", f"equalize:{key}")
