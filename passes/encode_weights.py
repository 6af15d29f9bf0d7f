"""encode-weights: how every weight is stored, chosen by role and by patterns on its name.

In: a module. Out: the same with encodings in its weights' types. Contractions and embeddings get the
encodings requested, in the layout that reads them fastest; norms, biases and other small tensors stay f32. A
text may name a solver, as in `hqq(int4(group=64))`: it is said in the weight's source, and carried out when
the weight is read. A table that is both embedding and head is stored once if both want the same encoding,
else twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np

from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Graph, Module, Op, Weight
from tilewright.ir.solver import Solver, parse_stored
from tilewright.ir.weights.solved import solved_by
from tilewright.passes.base import Pass, PassContext
from tilewright.passes.expand_low_rank import expand_low_rank, rest_of
from tilewright.passes.lower.record import matrix_of
from tilewright.passes.solvers.code_values import Form
from tilewright.passes.solvers.finequant import FineQuant
from tilewright.passes.weight_roles import (
    EMBEDDING,
    HEAD,
    OTHER,
    TIED,
    check_rules,
    first_rule,
    roles,
)

#: rows that a choice of group is made on
SAMPLE = 256


@dataclass(frozen=True)
class EncodeWeights(Pass):
    """Assign encodings: `weights` to contractions, `embeddings` and `head` (empty: a default that fits
    `weights`); `rules`: (pattern on the weight's name, encoding), the first match wins over all of these;
    `wide`: names of weights with rows beyond the range of their encoding, which get the same encoding with
    scales of a wider range.
    """

    name: ClassVar[str] = "encode-weights"
    needs: ClassVar[frozenset[str]] = frozenset({"unfused"})
    gives: ClassVar[frozenset[str]] = frozenset({"encoded-weights"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"unsolved-weights"})
    tolerance: ClassVar[float | None] = None

    weights: str = "bf16"
    embeddings: str = ""
    head: str = ""
    rules: tuple[tuple[str, str], ...] = ()
    wide: tuple[str, ...] = ()

    def run(self, module: Module, ctx: PassContext) -> Module:
        check_rules(self.rules, (w.name for w in module.weights), self.name)
        used = roles(module)
        problems: list[str] = []
        out: list[Weight] = []
        copies: dict[str, Weight] = {}
        for w in module.weights:
            role = used.get(w.name, OTHER)
            if w.type.dtype != "f32":
                out.append(self._own_type(w, problems))
            elif role == TIED:
                first, second = self._tied(w, ctx, problems)
                out += [first] if second is None else [first, second]
                if second is not None:
                    copies[w.name] = second
            else:
                out.append(self._encoded(w, role, ctx, problems))
        if problems:
            example = problems[0].partition(":")[0].lstrip("@")
            hint = (
                "store them in another encoding, with a recipe file with [rules] and lines like "
                f'"{example}" = "int8(channel)"'
            )
            raise RefusedError(
                "these weights cannot be stored in the chosen encoding:\n  " + "\n  ".join(problems),
                self.name,
                hint,
            )
        graphs = tuple(_read_copies(g, copies) for g in module.graphs)
        return expand_low_rank(replace(module, graphs=graphs, weights=tuple(out)), ctx)

    # -------------------------------------------------------------- choices
    def choice(self, name: str, role: str) -> str:
        """The encoding text for a weight."""
        rule = first_rule(self.rules, name)
        if rule is not None:
            return rule
        if role == EMBEDDING:
            return self.embeddings or _embedding_default(self.weights)
        return self.head or self.weights if role == HEAD else self.weights

    def _own_type(self, w: Weight, problems: list[str]) -> Weight:
        """Doubles, integers and booleans are stored as they are: encodings hold f32."""
        forced = first_rule(self.rules, w.name)
        if forced is not None:
            problems.append(f"@{w.name}: {forced} stores f32, but the weight is {w.type.dtype}")
        return w

    def _encoded(self, w: Weight, role: str, ctx: PassContext, problems: list[str]) -> Weight:
        if role == OTHER:
            forced = first_rule(self.rules, w.name)
            if forced is None:
                return replace(w, type=w.type.with_(encoding=None))
            return self._stored(w, forced, True, ctx, problems)
        return self._stored(w, self.choice(w.name, role), role == EMBEDDING, ctx, problems)

    def _tied(self, w: Weight, ctx: PassContext, problems: list[str]) -> tuple[Weight, Weight | None]:
        """One buffer that the head's kernel likes and the lookup can read, unless the two are asked to
        differ."""
        head = self._whole(w, self.choice(w.name, HEAD), ctx)
        table = self.choice(w.name, EMBEDDING) if self.embeddings else head
        if head == table:
            ctx.applied(
                "tied", f"@{w.name}", f"one copy stored as {head} is shared by the embedding and the head"
            )
            return self._stored(w, head, False, ctx, problems), None
        ctx.declined(
            "tied", f"@{w.name}", f"the embedding is stored as {table}, the head as {head}: two copies"
        )
        twin = replace(w, name=f"{w.name}.head")
        return self._stored(w, table, True, ctx, problems), self._stored(twin, head, False, ctx, problems)

    def _whole(self, w: Weight, text: str, ctx: PassContext) -> str:
        """Without a low-rank part, which lookups cannot read, unless it was asked for by name."""
        factors = encoding_for(text, rows=False).factors
        if factors is None or self.head or first_rule(self.rules, w.name) is not None:
            return text
        ctx.declined("low rank", f"@{w.name}", f"an embedding reads it too: stored as {factors.base}")
        return str(factors.base)

    def _stored(self, w: Weight, text: str, rows: bool, ctx: PassContext, problems: list[str]) -> Weight:
        wide = w.name in self.wide or rest_of(w.name) in self.wide
        return _stored(w, text, rows, ctx, problems, wide)


def encoding_for(text: str, rows: bool) -> Encoding:
    """The encoding in a text; dense ones in row-major order for lookups and in panels for contractions."""
    try:
        e = parse_encoding(parse_stored(text)[1])
    except EncodingError as why:
        raise RefusedError(str(why), "encode-weights") from why
    if e.operand_form is not None:
        raise RefusedError(
            f"{text} is an encoding for activations", "encode-weights", "use int8(channel) or int4(group=32)"
        )
    return e if rows else e.arranged("panel")


def _embedding_default(weights: str) -> str:
    e = encoding_for(weights, rows=True)
    return str(e) if e.element else "int8(channel)"


def _stored(w: Weight, text: str, rows: bool, ctx: PassContext, problems: list[str], wide: bool) -> Weight:
    """The weight with the encoding of a text, and with its solver said in its source."""
    try:
        solver, inner = parse_stored(text)
        inner = _grown(w, solver, inner, ctx)
    except EncodingError as why:
        raise RefusedError(str(why), "encode-weights") from why
    e = encoding_for(inner, rows)
    shape = cast("tuple[int, ...]", w.type.shape)
    if e.fitting(shape) != e:
        ctx.declined(
            "encoding", f"@{w.name}", f"{e} does not divide K = {shape[-1]}: stored as {e.fitting(shape)}"
        )
        e = e.fitting(shape)
    if wide and (wider := e.wider()) is not None:
        ctx.applied(
            "wider scales", f"@{w.name}", f"{e} does not cover its range of magnitudes: stored as {wider}"
        )
        e = wider
    try:
        e.check(shape)
        if solver is not None:
            for part in solver.chain() if e.factors is None else ():
                Form(e, shape[-1]).check(part.name)
    except EncodingError as why:
        problems.append(f"@{w.name}: {why}")
    source = w.source if solver is None else solved_by(w.source, solver.text(e))
    stored = w.type.with_(encoding=e)
    return replace(w, type=w.type if stored.stored == (w.type.dtype, None) else stored, source=source)


def _grown(w: Weight, solver: Solver | None, text: str, ctx: PassContext) -> str:
    """Text of the encoding, its group chosen by the solver if that is what the solver does."""
    for part in solver.chain() if solver else ():
        if isinstance(part, FineQuant):
            if ctx.weights is None:
                raise RefusedError(
                    f"{part.name} needs the weights, which are not available",
                    f"@{w.name}",
                    "state the group explicitly",
                )
            x = np.asarray(ctx.weights(w), np.float32)
            rows = x.reshape(-1, x.shape[-1])
            return part.choose(rows[:: max(len(rows) // SAMPLE, 1)], text)
    return text


def _read_copies(graph: Graph, copies: dict[str, Weight]) -> Graph:
    """Contractions read the second copy of a tied weight."""
    return replace(graph, ops=tuple(_renamed(op, copies) for op in graph.ops)) if copies else graph


def _renamed(op: Op, copies: dict[str, Weight]) -> Op:
    matrix = matrix_of(op)
    if matrix is None or op.operands[matrix.operand][1:] not in copies:
        return op
    twin = f"@{copies[op.operands[matrix.operand][1:]].name}"
    operands = tuple(twin if n == matrix.operand else o for n, o in enumerate(op.operands))
    return replace(op, operands=operands, passes=(*op.passes, "encode-weights"))
