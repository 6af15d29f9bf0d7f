"""assign_tokens: which tokens of a sequence are kept, and which of the others share their places.

In: a score per token, or a key. Out: an index map, which `ops.tokens` applies. A *place* is a token of the
shorter sequence. `slots` [B, N] holds the place of every token (the number of places: the token is dropped),
`ids` [B, M] the token that represents every place. Every row of the batch chooses for itself; all have the
same number of places. Equal scores go to the lower index, and NaN counts as the lowest score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.ops.base import Array, Attrs, AttrSpec, AxisRole, OpDef, register_op
from tilewright.ir.ops.common import (
    BOOL,
    Roles,
    Types,
    get_int,
    int_attr,
    require,
    require_float,
    require_rank,
    shape_of,
    wide,
)  # fmt: skip
from tilewright.ir.types import TensorType, as_dim

Ints = NDArray[np.int64]
F64 = NDArray[np.float64]

MODES = ("gather", "merge", "cluster")
#: added to the square of a key's length, so that a key of zeros has similarity 0 to every other
TINY = 1e-12
#: of a medoid to itself: larger than any cosine, so that no cluster is ever empty
OWN = 2.0


# ------------------------------------------------------------------ where clusters begin
def segments_of(n: int, count: int, protect: int, segments: int) -> Ints:
    """[N]: the segment of each token; a protected token is a segment of its own, with a negative number."""
    free = n - protect
    cuts = [free * (s + 1) // segments for s in range(segments)]
    return np.concatenate([-1 - np.arange(protect), np.searchsorted(cuts, np.arange(free), "right")])


def first_medoids(n: int, count: int, protect: int, segments: int) -> Ints:
    """[M]: the medoids that clustering starts from: protected tokens, then in each segment as many as its
    share of the places, evenly spaced."""
    free, places = n - protect, count - protect
    out = list(range(protect))
    for s in range(segments):
        lo, hi = free * s // segments, free * (s + 1) // segments
        share = places * (s + 1) // segments - places * s // segments
        out += [protect + lo + (2 * t + 1) * (hi - lo) // (2 * share) for t in range(share)]
    return np.array(out, np.int64)


def merge_sources(n: int, protect: int) -> int:
    """How many tokens bipartite merging can take away at once: those at even indices."""
    return len(range(protect + protect % 2, n, 2))


# ------------------------------------------------------------------ assign_tokens
def _infer_assign(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, mode = types[0], at["mode"]
    require(mode in MODES, "assign_tokens", f"a mode of {', '.join(MODES)}", mode)
    require_float("assign_tokens", x)
    rank = 2 if mode == "gather" else 3
    require_rank("assign_tokens", x, rank, "scores [B, N]" if rank == 2 else "keys [B, N, D]")
    n, count = x.shape[1], as_dim(at["count"])
    if isinstance(n, int) and isinstance(count, int):
        _check_counts(n, count, at)
    else:
        require(mode != "cluster", "assign_tokens", "a fixed number of tokens to cluster", x)
    return [TensorType("i32", (x.shape[0], count)), TensorType("i32", x.shape[:2])]


def _check_counts(n: int, count: int, at: Attrs) -> None:
    protect, segments = get_int(at, "protect"), get_int(at, "segments")
    least = protect + bool(at["fuse"])
    if at["mode"] == "merge":
        least = max(least, n - merge_sources(n, protect))
    if at["mode"] == "cluster":
        least = protect + segments
    got = f"{count} of {n} tokens"
    require(
        least <= count <= n and protect >= 0, "assign_tokens", f"to keep between {least} and all tokens", got
    )
    require(
        1 <= segments <= max(n - protect, 1), "assign_tokens", "segments of at least one token", f"{segments}"
    )
    require(
        not at["fuse"] or at["mode"] == "gather", "assign_tokens", "fuse with mode gather alone", at["mode"]
    )


def _assign(args: Sequence[Array], at: Attrs, results: Types) -> tuple[Array, ...]:
    ids, slots = (np.zeros(shape_of(t), np.int32) for t in results)
    rule = {"gather": _gather, "merge": _merge, "cluster": _cluster}[str(at["mode"])]
    for b, x in enumerate(args[0]):
        ids[b], slots[b] = rule(wide(x), ids.shape[1], at)
    return ids, slots


def _best_first(score: F64) -> Ints:
    """Indices by falling score, equal ones in order."""
    return np.argsort(-np.where(np.isnan(score), -np.inf, score), kind="stable")


def _gather(score: F64, count: int, at: Attrs) -> tuple[Ints, Ints]:
    """The protected tokens and those of the highest scores; the rest is dropped, or fused into a last place
    that the best of it represents."""
    protect, fuse = get_int(at, "protect"), int(bool(at["fuse"]))
    order = protect + _best_first(score[protect:])
    keep = count - protect - fuse
    ids = np.sort(np.concatenate([np.arange(protect), order[:keep]]))
    slots = np.full(len(score), count - fuse)
    slots[ids] = np.arange(count - fuse)
    return np.concatenate([ids, order[keep : keep + fuse]]), slots


def similarity(keys: F64) -> F64:
    """Cosines [N, N]."""
    unit = keys / np.sqrt((keys * keys).sum(-1, keepdims=True) + TINY)
    cosines: F64 = unit @ unit.T
    return np.where(np.isnan(cosines), -np.inf, cosines)


def _merge(keys: F64, count: int, at: Attrs) -> tuple[Ints, Ints]:
    """Bipartite matching: tokens at even indices each propose to the most similar one at an odd index, and
    the best proposals are merged. Every token that is not merged away represents its place."""
    n, protect = len(keys), get_int(at, "protect")
    odd = np.arange(protect + 1 - protect % 2, n, 2)
    even = np.arange(protect + protect % 2, n, 2)
    slots = np.zeros(n, np.int64)
    gone, target = even[:0], even[:0]
    if len(odd) and len(even):
        cosines = similarity(keys)[np.ix_(even, odd)]
        best = _best_first(cosines.max(1))[: n - count]
        gone, target = even[best], odd[cosines.argmax(1)[best]]
    ids = np.setdiff1d(np.arange(n), gone)
    slots[ids] = np.arange(count)
    slots[gone] = slots[target]
    return ids, slots


def _cluster(keys: F64, count: int, at: Attrs) -> tuple[Ints, Ints]:
    """k-medoids within segments of consecutive tokens, for a fixed number of rounds; medoids stay ordered."""
    split = (len(keys), count, get_int(at, "protect"), get_int(at, "segments"))
    segment, ids = segments_of(*split), first_medoids(*split)
    place, cosines = segment[ids], similarity(keys)
    np.fill_diagonal(cosines, 0.0)  # two tokens of a cluster are equally near: the lower index is its medoid
    slots = _nearest(cosines, ids, segment, place)
    for _ in range(get_int(at, "rounds")):
        inner = np.where(slots[:, None] == slots[None], cosines, 0.0).sum(1)
        ids = np.where(slots[None] == np.arange(count)[:, None], inner[None], -np.inf).argmax(1)
        slots = _nearest(cosines, ids, segment, place)
    rank = np.argsort(np.argsort(ids))
    return np.sort(ids), rank[slots]


def _nearest(cosines: F64, ids: Ints, segment: Ints, place: Ints) -> Ints:
    """The most similar medoid of each token's own segment; a medoid's is itself."""
    found = np.where(ids[:, None] == np.arange(len(cosines)), OWN, cosines[ids])
    nearest: Ints = np.where(place[:, None] == segment[None], found, -np.inf).argmax(0)
    return nearest


def _axes_assign(types: Types, at: Attrs) -> Roles:
    roles: list[AxisRole] = [("keep", 0), ("mix", 1), ("reduce",)]
    return [roles[: types[0].rank]]


def _cost_assign(types: Types, at: Attrs) -> object:
    """A comparison per pair of tokens, or a product of their keys and what each round of clustering sums."""
    x = types[0]
    pairs = x.shape[0] * x.shape[1] * x.shape[1]
    if at["mode"] == "gather":
        return as_dim(pairs)
    return as_dim(pairs * (2 * x.shape[2] + get_int(at, "rounds")))


register_op(OpDef(
    "assign_tokens", ("score",),
    {
        "mode": AttrSpec("str"), "count": AttrSpec("dim"), "protect": int_attr(0), "fuse": BOOL,
        "segments": int_attr(1), "rounds": int_attr(0),
    },
    _infer_assign, _assign, _axes_assign, _cost_assign,
    doc="ids [B, count] and slots [B, N]: which tokens are kept and where each goes. gather: the highest "
        "scores [B, N] (fuse: the rest shares a last place); merge: bipartite matching of keys [B, N, D]; "
        "cluster: k-medoids of keys in segments; the first `protect` tokens stay",
))  # fmt: skip
