"""Which axes of which values run along the tokens of an encoder, by axis roles alone.

In: a graph with recognised attention. Out: the axes that are connected with the queries of self-attentions,
and where along the graph the fewest values carry tokens. Sizes are never compared, so that an axis that
happens to be as long as the tokens is not taken for theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Op
from tilewright.ir.ops.attention import extra_names
from tilewright.ir.ops.base import OPS
from tilewright.passes.axis_roles import roles_of
from tilewright.passes.patterns import View, where

#: a value and one of its axes
Place = tuple[str, int]
#: the axis of tokens in queries, keys and values
TOKENS = 1


@dataclass(frozen=True)
class Encoder:
    """The tokens of one encoder. `layers`: its self-attentions, as places in the graph; `axes`: by value, the
    axes that run along its tokens."""

    layers: tuple[int, ...]
    axes: dict[str, tuple[int, ...]]

    def of(self, operand: str) -> tuple[int, ...]:
        return self.axes.get(operand, ())


def encoders(view: View) -> list[Encoder]:
    """Every set of tokens that attends to itself, the one with most attentions first."""
    axes = _connected(view)
    layers: dict[Place, list[int]] = {}
    for n, op in enumerate(view.graph.ops):
        if op.name == "attend" and not op.attr("flat"):
            own, keys = (axes.root((o, TOKENS)) for o in op.operands[:2])
            if own == keys:
                layers.setdefault(own, []).append(n)
    found = sorted(layers.items(), key=lambda item: -len(item[1]))
    return [Encoder(tuple(places), axes.members(root)) for root, places in found]


class _Axes:
    """Axes of values, connected where an op keeps one as the other."""

    def __init__(self) -> None:
        self.above: dict[Place, Place] = {}

    def root(self, place: Place) -> Place:
        while (up := self.above.get(place, place)) != place:
            place = up
        return place

    def join(self, a: Place, b: Place) -> None:
        a, b = self.root(a), self.root(b)
        self.above.setdefault(a, a)
        self.above[b] = a

    def members(self, root: Place) -> dict[str, tuple[int, ...]]:
        out: dict[str, tuple[int, ...]] = {}
        for value, axis in sorted(self.above):
            if self.root((value, axis)) == root:
                out[value] = (*out.get(value, ()), axis)
        return out


def _connected(view: View) -> _Axes:
    axes = _Axes()
    for op in view.graph.ops:
        if OPS[op.name].state:
            continue
        for operand, roles in zip(op.operands, roles_of(op, view.type), strict=True):
            for axis, role in enumerate(roles):
                if len(role) == 2 and role[0] in ("keep", "causal"):
                    for r in op.results:
                        axes.join((f"%{r.name}", role[1]), (operand, axis))
        if op.name == "attend" and not op.attr("flat"):
            for a, b in _key_axes(view, op):
                axes.join(a, b)
    return axes


def _key_axes(view: View, op: Op) -> Iterable[tuple[Place, Place]]:
    """Axes of keys: of k, v, and of what is added to scores or masks them."""
    keys = (op.operands[1], TOKENS)
    yield keys, (op.operands[2], TOKENS)
    names = extra_names(dict(op.attrs))
    for name, operand in zip(names, op.operands[3:], strict=True):
        if name in ("bias", "mask", "padding"):
            yield keys, (operand, view.type(operand).rank - 1)


# ------------------------------------------------------------------ where few values are live
def carried(view: View, encoder: Encoder, place: int) -> list[str]:
    """Values that depend on the attention at `place`, by the places of ops: those that carry its tokens."""
    ops = view.graph.ops
    found = {f"%{ops[place].result.name}"}
    for op in ops[place + 1 :]:
        if found.intersection(op.operands):
            found.update(f"%{r.name}" for r in op.results)
    return [v for v in found if encoder.of(v)]


def narrowest(view: View, encoder: Encoder, layer: int) -> tuple[int, str]:
    """The first place after an attention, and before the next one, where fewest values that carry tokens are
    still to be read: behind the residual addition. The place is that of the op before which it lies; with it
    the one value there that depends on the attention. RefusedError if there always are several."""
    ops, places = view.graph.ops, encoder.layers
    start = places[layer]
    end = places[layer + 1] if layer + 1 < len(places) else len(ops)
    depends = set(carried(view, encoder, start))
    best: tuple[int, int, list[str]] | None = None
    for place in range(start + 1, end + 1):
        live = _live(view, encoder, place)
        of_layer = [v for v in live if v in depends]
        if of_layer and (best is None or len(live) < best[0]):
            best = len(live), place, of_layer
    if best is None or len(best[2]) != 1:
        found = "nothing" if best is None else ", ".join(best[2])
        raise RefusedError(
            f"tokens cannot be cut after layer {layer}: {found} depends on its attention, and one value must",
            where(ops[start]), "name other layers, as in evit(keep=0.7, layers=[1, 3])",
        )  # fmt: skip
    return best[1], best[2][0]


def _live(view: View, encoder: Encoder, place: int) -> list[str]:
    """Inputs and results of ops before a place that carry tokens and are read from there on, in order."""
    ops = view.graph.ops
    read = {o for op in ops[place:] for o in op.operands} | set(view.graph.outputs)
    made = [f"%{v.name}" for v in view.graph.inputs]
    made += [f"%{r.name}" for op in ops[:place] for r in op.results]
    return [v for v in made if v in read and encoder.of(v)]
