"""Importers of the two operators that capture itself puts into a program: attention and grouped linear maps.

In: their arguments as operands of the graph. Out: `attend` and `grouped_linear`, weights rearranged lazily into the one form the
graph knows. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.capture.context import Context, Importer
from tilewright.ir.graph import Apply, Weight


def import_attend(
    c: Context, q: str, k: str, v: str, sinks: str | None, bias: str | None, mask: str | None,
    scale: float, causal: bool, window: int, softcap: float,
) -> str:  # fmt: skip
    """`tilewright::attend` on [B, S, H, D]."""
    extras = [x for x in (sinks, bias, mask) if x is not None]
    return c.op(
        "attend", q, k, v, *extras,
        heads=c.shape(q)[2], kv_heads=c.shape(k)[2], scale=float(scale), causal=causal, window=window, softcap=float(softcap),
        sinks=sinks is not None, bias="none" if bias is None else "tensor", mask="none" if mask is None else "tensor",
    )  # fmt: skip


def import_grouped_linear(
    c: Context, x: str, weight: str, ids: str, bias: str | None, transposed: bool, interleaved: bool
) -> str:
    """`tilewright::grouped_linear`: the weight as [E, N, K], its even rows first if they were interleaved with the odd ones."""
    w = _transposed(c, weight) if transposed else weight
    w, b = (_even_first(c, w), bias and _even_first(c, bias)) if interleaved else (w, bias)
    return c.op("grouped_linear", x, w, ids, *([b] if b else []))


def _transposed(c: Context, operand: str) -> str:
    perm = (0, 2, 1)
    w = _weight(c, operand)
    if w is None:
        return c.op("transpose", operand, perm=perm)
    shape = tuple(w.type.shape[p] for p in perm)
    return c.b.weight(f"{w.name}.transposed", w.type.with_(shape=shape), Apply("transpose", (w.source,), (("perm", perm),)))


def _even_first(c: Context, operand: str) -> str:
    """Entries 0, 2, 4, … of axis 1, then 1, 3, 5, …"""
    size = c.shape(operand)[1]
    w = _weight(c, operand)
    if w is None:
        parts = [c.op("slice", operand, axis=1, start=n, stop=size, step=2) for n in (0, 1)]
        return c.op("concat", *parts, axis=1)
    cuts = [(("axis", 1), ("start", n), ("step", 2), ("stop", size)) for n in (0, 1)]
    halves = tuple(Apply("slice", (w.source,), cut) for cut in cuts)
    return c.b.weight(f"{w.name}.even_first", w.type, Apply("concat", halves, (("axis", 1),)))


def _weight(c: Context, operand: str) -> Weight | None:
    return c.b.weights.get(operand[1:]) if operand[0] == "@" else None


CUSTOM: Mapping[str, Importer] = {
    "tilewright::attend": import_attend,
    "tilewright::grouped_linear": import_grouped_linear,
}
