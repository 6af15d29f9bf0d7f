"""Importers of capture's own operators: attention, grouped linear layers, sequence lengths.

In: their arguments as operands of the graph. Out: `attend` and `grouped_linear`, weights rearranged lazily
into the one form the graph knows. Independent of models.
"""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.capture.context import TABLE, Capture, Importer
from tilewright.ir.graph.core import Apply, Weight


def import_attend(
    c: Capture, q: str, k: str, v: str, sinks: str | None, bias: str | None, mask: str | None,
    scale: float, causal: bool, window: int, softcap: float,
) -> str:  # fmt: skip
    """`tilewright::attend` on [B, S, H, D]."""
    extras = [x for x in (sinks, bias, mask) if x is not None]
    return c.op(
        "attend", q, k, v, *extras,
        heads=c.shape(q)[2], kv_heads=c.shape(k)[2], scale=float(scale), causal=causal, window=window,
        softcap=float(softcap),
        sinks=sinks is not None, bias="none" if bias is None else "tensor",
        mask="none" if mask is None else "tensor",
    )  # fmt: skip


def import_grouped_linear(
    c: Capture, x: str, weight: str, ids: str, bias: str | None, transposed: bool, interleaved: bool
) -> str:
    """`tilewright::grouped_linear`: the weight as [E, N, K], its even rows first if they were interleaved
    with the odd ones."""
    w = swapped(c, weight) if transposed else weight
    w, b = (_even_first(c, w), bias and _even_first(c, bias)) if interleaved else (w, bias)
    return c.op("grouped_linear", x, w, ids, *([b] if b else []))


def import_sequence_length(c: Capture, positions: str) -> str:
    """`tilewright::sequence_length` on [B, S]."""
    return c.op("sequence_length", positions)


def import_gather(c: Capture, x: str, dim: int, ids: str, **more: object) -> str:
    """`aten::gather` from a table repeated over the batch by positions repeated over channels: whole rows of
    the table."""
    table, rows = _repeated_table(c, x), _repeated_rows(c, ids)
    if c.axis(x, dim) != 1 or table is None or rows is None:
        made: str = TABLE["aten.gather"](c, x, dim, ids, **more)
        return made
    return c.op("gather", table, c.index(rows), axis=0)


def _repeated_table(c: Capture, x: str) -> str | None:
    """The table [N, D] that `x` [B, N, D] holds for every sequence."""
    op, shape = c.producer(x), c.shape(x)
    while op is not None and op.name in ("reshape", "expand", "repeat"):
        source = op.operands[0]
        sizes = [n for n in c.shape(source) if n != 1]
        if sizes == list(shape[1:]) and all(isinstance(n, int) for n in sizes):
            return c.reshape(source, shape[1:])
        op = c.producer(source)
    return None


def _repeated_rows(c: Capture, ids: str) -> str | None:
    """The rows [B, S] that `ids` [B, S, D] repeats along its last axis."""
    op, shape = c.producer(ids), c.shape(ids)
    source = op.operands[0] if op is not None and op.name in ("expand", "repeat") else None
    known = source is not None and c.shape(source) == (*shape[:2], 1)
    return c.reshape(source, shape[:2]) if known and source is not None else None


def swapped(c: Capture, operand: str) -> str:
    """[E, A, B] as [E, B, A]: of a weight, once and not at run time."""
    perm = (0, 2, 1)
    w = _weight(c, operand)
    if w is None:
        return c.op("transpose", operand, perm=perm)
    shape = tuple(w.type.shape[p] for p in perm)
    return c.b.weight(
        f"{w.name}.transposed", w.type.with_(shape=shape), Apply("transpose", (w.source,), (("perm", perm),))
    )


def _even_first(c: Capture, operand: str) -> str:
    """Entries 0, 2, 4, … of axis 1, then 1, 3, 5, …"""
    size = c.shape(operand)[1]
    w = _weight(c, operand)
    if w is None:
        parts = [c.op("slice", operand, axis=1, start=n, stop=size, step=2) for n in (0, 1)]
        return c.op("concat", *parts, axis=1)
    cuts = [(("axis", 1), ("start", n), ("step", 2), ("stop", size)) for n in (0, 1)]
    halves = tuple(Apply("slice", (w.source,), cut) for cut in cuts)
    return c.b.weight(f"{w.name}.even_first", w.type, Apply("concat", halves, (("axis", 1),)))


def _weight(c: Capture, operand: str) -> Weight | None:
    return c.b.weights.get(operand[1:]) if operand[0] == "@" else None


CUSTOM: Mapping[str, Importer] = {
    "tilewright::attend": import_attend,
    "tilewright::grouped_linear": import_grouped_linear,
    "tilewright::sequence_length": import_sequence_length,
    "aten::gather": import_gather,
}
