"""expand-tokens: choices of tokens, and merging and restoring them, as ops that have kernels.

In: a graph with `assign_tokens`, `merge_tokens` or `restore_tokens`. Out: comparisons, sums and products.
Nothing is sorted: a token's rank is the number of tokens that beat it, and its place the number of kept
tokens before it, so that all rows of a batch run the same code whatever they choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.ops.common import product
from tilewright.ir.ops.token_choice import OWN, TINY, first_medoids, segments_of
from tilewright.ir.ops.tokens import LEAST
from tilewright.passes.base import Pass, PassContext


@dataclass(frozen=True)
class ExpandTokens(Pass):
    """Replace every choice of tokens, and what merges and restores them, by elementary ops."""

    name: ClassVar[str] = "expand-tokens"
    needs: ClassVar[frozenset[str]] = frozenset({"unfused"})
    gives: ClassVar[frozenset[str]] = frozenset({"no-token-choice"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical"})

    def run(self, module: Module, ctx: PassContext) -> Module:
        for graph in module.graphs:
            if any(op.name in _SPELLED for op in graph.ops):
                module = _rewrite(module, module.graph(graph.name))
        return module


def _rewrite(module: Module, graph: Graph) -> Module:
    b = GraphBuilder.over(module, graph, ExpandTokens.name)
    for op in graph.ops:
        spell = _SPELLED.get(op.name)
        if spell is None:
            b.copy(op)
            continue
        b.loc = op.loc
        for r, new in zip(op.results, spell(_Tokens(b), op), strict=True):
            b.replace(f"%{r.name}", new)
    for n, o in enumerate(graph.outputs):
        b.output(b.mapped(o), graph.results[n] if graph.results else None)
    return b.module()


class _Tokens:
    """Small questions about tokens as ops. Pairs of tokens are [B, N, N]: the token asked about, then the
    others."""

    def __init__(self, b: GraphBuilder) -> None:
        self.b = b

    def op(self, name: str, *operands: str, **attrs: Any) -> str:
        return self.b.op(name, *operands, **attrs)

    def whole(self, value: int) -> str:
        return self.op("const", value=value, dtype="i32")

    def like(self, x: str, value: float) -> str:
        return self.op("const", value=value, dtype=self.b.type(x).dtype)

    def shaped(self, x: str, *shape: object) -> str:
        return self.op("reshape", x, shape=shape)

    def both(self, *conditions: str) -> str:
        out = conditions[0]
        for more in conditions[1:]:
            out = self.op("and", out, more)
        return out

    # -------------------------------------------------------------- counting along tokens
    def places(self, size: object, column: bool = False) -> str:
        """0, 1, 2, … along the last axis, or the one before it."""
        return self.shaped(self.op("iota", size=size), *((size, 1) if column else (1, size)))

    def pair(self, x: str) -> tuple[str, str]:
        """[B, N] as the token asked about [B, N, 1], and the others [B, 1, N]."""
        batch, n = self.b.type(x).shape
        return self.shaped(x, batch, n, 1), self.shaped(x, batch, 1, n)

    def count(self, condition: str) -> str:
        """How many hold along the last axis."""
        axis = self.b.type(condition).rank - 1
        return self.op("sum", self.op("cast", condition, dtype="i32"), axes=(axis,))

    def numbers(self, x: str) -> str:
        """NaN as the lowest score."""
        return self.op("select", self.op("eq", x, x), x, self.like(x, -math.inf))

    def rank(self, score: str, among: str) -> str:
        """[B, N]: how many of the tokens `among` [1, N] have a higher score, or the same at a lower index."""
        n = self.b.type(score).shape[1]
        mine, other = self.pair(score)
        first = self.op("lt", self.places(n), self.places(n, column=True))
        tied = self.both(self.op("eq", other, mine), first)
        return self.count(self.both(self.op("or", self.op("gt", other, mine), tied), among))

    def before(self, kept: str) -> str:
        """[B, N]: how many tokens are kept before each."""
        counted = self.op("cumsum", self.op("cast", kept, dtype="i32"), axis=1)
        return self.op("sub", counted, self.op("cast", kept, dtype="i32"))

    def at_place(self, places: str, held: str, count: object) -> str:
        """ids [B, count]: for each place the token `held` there."""
        n = self.b.type(places).shape[1]
        here = self.op("eq", self.pair(places)[1], self.places(count, column=True))
        here = self.both(here, self.pair(held)[1])
        found = self.op("select", here, self.op("iota", size=n), self.whole(0))
        return self.op("max_reduce", found, axes=(2,))

    # -------------------------------------------------------------- keys
    def similarity(self, keys: str) -> str:
        """Cosines [B, N, N]."""
        squares = self.op("sum", self.op("mul", keys, keys), axes=(2,), keepdims=True)
        length = self.op("rsqrt", self.op("add", squares, self.like(keys, TINY)))
        unit = self.op("mul", keys, length)
        return self.numbers(self.op("matmul", unit, unit, transpose_b=True))


# ------------------------------------------------------------------ assign_tokens
def _assign(t: _Tokens, op: Op) -> tuple[str, str]:
    rule = {"gather": _gather, "merge": _merge, "cluster": _cluster}[str(op.attr("mode"))]
    return rule(t, op, t.b.mapped(op.operands[0]))


def _free(t: _Tokens, n: object, protect: int) -> str:
    """[1, N]: which tokens are not protected."""
    return t.op("ge", t.places(n), t.whole(protect))


def _gather(t: _Tokens, op: Op, score: str) -> tuple[str, str]:
    n, count = t.b.type(score).shape[1], op.attr("count")
    protect, fuse = cast(int, op.attr("protect")), int(bool(op.attr("fuse")))
    score = t.numbers(score)
    rank = t.rank(score, _free(t, n, protect))
    last = _number(t, count, -protect - fuse)
    own = t.op("lt", t.places(n), t.whole(protect))
    kept = t.op("or", own, t.op("lt", rank, last))
    before = t.before(kept)
    slots = t.op("select", kept, before, _number(t, count, -fuse))
    if not fuse:
        return t.at_place(before, kept, count), slots
    best = t.both(t.op("eq", rank, last), t.op("not", own))
    return t.at_place(slots, t.op("or", kept, best), count), slots


def _number(t: _Tokens, size: object, plus: int) -> str:
    """A number of tokens as a constant."""
    assert isinstance(size, int)
    return t.whole(size + plus)


def _merge(t: _Tokens, op: Op, keys: str) -> tuple[str, str]:
    batch, n, _ = t.b.type(keys).shape
    protect, count = cast(int, op.attr("protect")), op.attr("count")
    cosines = t.similarity(keys)
    even = t.op("eq", t.op("and", t.places(n), t.whole(1)), t.whole(0))
    source = t.both(even, _free(t, n, protect))
    target = t.both(t.op("not", even), _free(t, n, protect))
    offers = t.op("select", target, cosines, t.like(cosines, -math.inf))
    best = t.op("max_reduce", offers, axes=(2,))
    rank = t.rank(best, source)
    gone = t.both(source, t.op("lt", rank, _number(t, n, -cast(int, count))))
    kept = t.op("not", gone)
    before = t.before(kept)
    chosen = t.op("argmax", offers, axis=2)
    slots = t.op("select", kept, before, t.op("take_tokens", before, chosen))
    return t.at_place(before, kept, count), slots


def _cluster(t: _Tokens, op: Op, keys: str) -> tuple[str, str]:
    batch, n, _ = t.b.type(keys).shape
    split = tuple(cast(int, x) for x in (n, *(op.attr(k) for k in ("count", "protect", "segments"))))
    count, itself = split[1], t.op("eq", t.places(n), t.places(n, column=True))
    cosines = t.similarity(keys)
    cosines = t.op("select", itself, t.like(cosines, 0.0), cosines)
    segment, start = segments_of(*split), first_medoids(*split)
    together = t.op("eq", _known(t, segment[start][:, None]), _known(t, segment[None]))
    ids = t.op("expand", _known(t, start[None]), shape=(batch, count))
    slots = _nearest(t, cosines, ids, together)
    for _ in range(cast(int, op.attr("rounds"))):
        ids = _medoids(t, cosines, slots, count)
        slots = _nearest(t, cosines, ids, together)
    mine, other = t.pair(ids)
    rank = t.count(t.op("lt", other, mine))
    here = t.op("eq", t.pair(rank)[1], t.places(count, column=True))
    ordered = t.op("max_reduce", t.op("select", here, other, t.whole(0)), axes=(2,))
    return ordered, t.op("take_tokens", rank, slots)


def _known(t: _Tokens, x: Any) -> str:
    """Indices known at compile time."""
    return t.b.inline(t.b.fresh("tokens", list(t.b.weights)), np.asarray(x, np.int32))


def _nearest(t: _Tokens, cosines: str, ids: str, together: str) -> str:
    """[B, N]: the most similar medoid of each token's own segment."""
    n = t.b.type(cosines).shape[2]
    own = t.op("eq", t.pair(ids)[0], t.places(n))
    found = t.op("select", own, t.like(cosines, OWN), t.op("take_tokens", cosines, ids))
    found = t.op("select", together, found, t.like(cosines, -math.inf))
    return t.op("argmax", found, axis=1)


def _medoids(t: _Tokens, cosines: str, slots: str, count: int) -> str:
    """[B, M]: in each cluster the token with the largest sum of similarities to the cluster's."""
    same = t.op("eq", *t.pair(slots))
    inner = t.op("sum", t.op("select", same, cosines, t.like(cosines, 0.0)), axes=(2,))
    member = t.op("eq", t.pair(slots)[1], t.places(count, column=True))
    sums = t.op("select", member, t.pair(inner)[1], t.like(cosines, -math.inf))
    return t.op("argmax", sums, axis=2)


# ------------------------------------------------------------------ merge_tokens, restore_tokens
def _merged(t: _Tokens, op: Op) -> tuple[str]:
    """A product with the matrix [M, N] of the tokens' shares in the places."""
    x, slots, *weights = (t.b.mapped(o) for o in op.operands)
    shape, count = t.b.type(x).shape, op.attr("count")
    hit = t.op("eq", t.pair(slots)[1], t.places(count, column=True))
    share = t.like(x, 1.0)
    if weights:
        given = t.op("cast", weights[0], dtype=t.b.type(x).dtype)
        share = t.pair(t.op("max", given, t.like(x, LEAST)))[1]
    shares = t.op("select", hit, share, t.like(x, 0.0))
    if op.attr("mean"):
        total = t.op("sum", shares, axes=(2,), keepdims=True)
        none = t.op("eq", total, t.like(x, 0.0))
        shares = t.op("div", shares, t.op("select", none, t.like(x, 1.0), total))
    if len(shape) == 2:  # one number per token
        return (t.op("sum", t.op("mul", shares, t.pair(x)[1]), axes=(2,)),)
    y = t.op("matmul", shares, t.shaped(x, *shape[:2], product(shape[2:])))
    return (t.shaped(y, shape[0], count, *shape[2:]),)


def _restored(t: _Tokens, op: Op) -> tuple[str]:
    x, slots, old = (t.b.mapped(o) for o in op.operands)
    count = t.b.type(x).shape[1]
    held = t.op("lt", slots, _number(t, count, 0))
    back = t.op("take_tokens", x, t.op("min", slots, _number(t, count, -1)))
    batch, n, *rest = t.b.type(old).shape
    return (t.op("select", t.shaped(held, batch, n, *[1] * len(rest)), back, old),)


_SPELLED: dict[str, Callable[[_Tokens, Op], tuple[str, ...]]] = {
    "assign_tokens": _assign, "merge_tokens": _merged, "restore_tokens": _restored,
}  # fmt: skip
