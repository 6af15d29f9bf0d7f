"""incrementalize: causal attention over a sequence becomes attention over a cache that this step appends to.

In: a flat graph whose tokens meet only in ops that have a cached form (`passes.rules`), of which attention is
one. Out: graph @step with one `State` for each, and the query-block table `blocks` as an input. Attention
that is not causal is refused with its source line. Knows no particular op.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np

from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.encoding_registry import parse_cache_encodings, recent_rows
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Module, Op
from tilewright.ir.graph.live import tidy
from tilewright.ir.ops.base import Array
from tilewright.ir.plan.step import (
    BLOCK,
    CHOICE_COLUMNS,
    MOST_TOKENS,
    SLICE,
    STEP,
    STEP_INPUTS,
    block_table,
)
from tilewright.ir.selection import Selection, SelectionError, parse_selection
from tilewright.ir.types import tensor
from tilewright.passes.base import CheckCase, Pass, PassContext
from tilewright.passes.patterns import where
from tilewright.passes.rules import rules_of
from tilewright.passes.rules.record import Caches

#: of a query block that may be asked for
MOST_ROWS = 64
KV_HINT = "use bf16, f32, int8(token), int4(token) or int4(group=32), or two of them as KEYS / VALUES"
LOSES = "caches that lose rows, or choose among them, cannot keep recent ones in bf16 as well"


@dataclass(frozen=True)
class Incrementalize(Pass):
    """Insert caches for attention; `kv`: their encoding, or `KEYS / VALUES`, and perhaps `+ recent(N)`: the
    rows of the last N tokens are also kept in bf16, and attention reads those; `context`: maximum positions
    of a sequence (0: what the model allows), which the module then says in its `meta`; caches have room for
    whole slices. `block`: most rows in one query block, of which the step has at most `max_blocks`. `evicts`:
    caches may lose rows; `observes`: they also count the attention that each row gets from the queries of the
    table `runs`; `shares`: what sequences have in common is read once for all rows of each group in the table
    `groups`; `select`: how tokens with a budget in the table `choices` select blocks of rows
    (`ir.selection`), wherever attention has neither a window nor slopes."""

    name: ClassVar[str] = "incrementalize"
    needs: ClassVar[frozenset[str]] = frozenset({"flat-tokens", "unfused"})
    gives: ClassVar[frozenset[str]] = frozenset({"incremental", "no-attend"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical", "flat-tokens"})
    tolerance: ClassVar[float | None] = 1e-2

    graph: str = "forward"
    kv: str = "bf16"
    context: int = 0
    max_blocks: int = MOST_TOKENS
    block: int = BLOCK
    evicts: bool = False
    observes: bool = False
    shares: bool = False
    select: str = ""

    def run(self, module: Module, ctx: PassContext) -> Module:
        graph = module.graph(self.graph)
        _refuse_what_reads_ahead(graph.ops)
        _check_block(self.block)
        context = allowed_context(self.context, dict(module.meta))
        length = -(-context // SLICE) * SLICE
        b = GraphBuilder.over(module, graph, self.name)
        b.meta["context"] = context
        b.symbol("NB", 1, self.max_blocks)
        if self.block != BLOCK:
            b.symbol("Q", 1, self.block)
        b.add_input("blocks", tensor("i32", *STEP_INPUTS["blocks"]))
        if self.observes:
            b.symbol("NR", 0, self.max_blocks)
            b.add_input("runs", tensor("i32", *STEP_INPUTS["runs"]))
        if self.shares:
            b.symbol("NG", 0, self.max_blocks)
            b.add_input("groups", tensor("i32", *STEP_INPUTS["groups"]))
        if self.select:
            b.add_input("choices", tensor("i32", *STEP_INPUTS["choices"]))
        keys, values = _cache_encodings(self.kv)
        select, recent = _selection(self.select), recent_rows(self.kv)[1]
        if recent and (self.evicts or self.observes or select):
            hint = "omit `+ recent(N)`, or the cache policy"
            raise RefusedError(f"kv encoding {self.kv}: {LOSES}", self.name, hint)
        caches = Caches(b, keys, values, length, self.evicts, self.observes, self.shares, select, recent)
        for op in graph.ops:
            form = rules_of(op).cached
            if form is None:
                b.copy(op)
            else:
                form.rewrite(caches, op)
        for n, o in enumerate(graph.outputs):
            b.output(b.mapped(o), graph.results[n] if graph.results else None)
        _check_states(b, select)
        out = tidy(b.module())
        graphs = tuple(replace(g, name=STEP) if g.name == self.graph else g for g in out.graphs)
        return replace(out, graphs=graphs)

    def adapt(
        self, before: Module, after: Module, graph: str, inputs: Mapping[str, Array]
    ) -> CheckCase | None:
        if graph != self.graph:
            return None
        seq, pos = (inputs["seq"], inputs["pos"]) if "seq" in inputs else ((0,), (0,))
        blocks = block_table(seq, pos, self.block)
        tables = {"blocks": blocks, **({"runs": blocks[:0]} if self.observes else {})}
        tables |= {"groups": blocks[:0]} if self.shares else {}
        if self.select:
            tables["choices"] = np.zeros((len(seq), len(CHOICE_COLUMNS)), np.int32)
        return CheckCase(STEP, {**inputs, **tables}, lambda results: results)


def allowed_context(asked: int, meta: Mapping[str, object]) -> int:
    """The context requested (0: the model's own). RefusedError if the model has no entries for so many
    positions."""
    positions = cast(int, meta.get("positions", 0))
    if asked < 0:
        raise RefusedError(
            f"a context of {asked} positions", "incrementalize", "use at least 1, or 0 for the model's own"
        )
    if positions and asked > positions:
        where = str(meta.get("table", ""))
        what = (
            f"the model has a table of {positions}"
            if where
            else f"the rotary factors are known for {positions}"
        )
        raise RefusedError(f"a context of {asked} positions, {what}", where, f"use at most {positions}")
    return asked or cast(int, meta.get("context", 2048))


def _check_block(rows: int) -> None:
    if not 1 <= rows <= MOST_ROWS:
        raise RefusedError(f"query blocks of {rows} rows", "incrementalize", f"use 1 to {MOST_ROWS}")


def _refuse_what_reads_ahead(ops: tuple[Op, ...]) -> None:
    for op in ops:
        form = rules_of(op).cached
        why = "" if form is None else form.refusal(op)
        if why:
            hint = "an encoder needs whole sequences: compile it as a plain module"
            raise RefusedError(why, where(op), hint)


def _cache_encodings(text: str) -> tuple[Encoding, Encoding]:
    try:
        return parse_cache_encodings(text)
    except EncodingError as why:
        raise RefusedError(f"kv encoding: {why}", "incrementalize", KV_HINT) from why


def _selection(text: str) -> Selection | None:
    try:
        return parse_selection(text) if text else None
    except SelectionError as why:
        hint = "for example bound(block=64, pool=max)"
        raise RefusedError(f"select: {why}", "incrementalize", hint) from None


def _check_states(b: GraphBuilder, select: Selection | None) -> None:
    """RefusedError for an encoding that cannot store rows of a head's width, or where no attention can
    select."""
    if select and not any(s.select for s in b.states.values()):
        message = "no attention of this model can select blocks: all have windows or ALiBi"
        raise RefusedError(message, "incrementalize", "use a cache policy that evicts, such as h2o")
    for state in b.states.values():
        for e, width, word in ((state.k, state.k_dim, "keys"), (state.v, state.v_dim, "values")):
            try:
                e.check((state.heads, state.context, width))
            except EncodingError as why:
                message = f"kv encoding: {word} of {width} channels: {why}"
                raise RefusedError(message, "incrementalize", KV_HINT) from why
