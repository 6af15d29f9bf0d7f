"""incrementalize: causal attention over a sequence becomes attention over a cache that this step appends to.

In: a flat graph whose tokens meet only in causal `attend`. Out: graph @step with one `State` per attention,
`cache_append` and `attend_cache`, and the query-block table `blocks` as an input. An attention that is not
causal is refused with its source line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Module, Op, State
from tilewright.ir.graph.live import tidy
from tilewright.ir.ops.attention import extra_names
from tilewright.ir.ops.base import Array
from tilewright.ir.plan.step import BLOCK, MOST_TOKENS, SLICE, STEP, STEP_INPUTS, block_table
from tilewright.ir.types import tensor
from tilewright.passes.base import CheckCase, Pass, PassContext
from tilewright.passes.patterns import where

#: of a query block that may be asked for
MOST_ROWS = 64
KV_HINT = "use bf16, f16, f32 or int8(token)"
#: attributes that attend and attend_cache share
_SHARED = ("heads", "kv_heads", "scale", "window", "softcap", "sinks", "bias")


@dataclass(frozen=True)
class Incrementalize(Pass):
    """Insert caches for attention; `kv`: their encoding; `context`: maximum positions of a sequence (0: what
    the model allows), which the module then says in its `meta`; caches have room for whole slices. `block`:
    most rows in one query block, of which the step has at most `max_blocks`.
    """

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

    def run(self, module: Module, ctx: PassContext) -> Module:
        graph = module.graph(self.graph)
        _refuse_unless_causal(graph.ops)
        _check_block(self.block)
        context = allowed_context(self.context, dict(module.meta))
        length = -(-context // SLICE) * SLICE
        b = GraphBuilder.over(module, graph, self.name)
        b.meta["context"] = context
        b.symbol("NB", 1, self.max_blocks)
        if self.block != BLOCK:
            b.symbol("Q", 1, self.block)
        b.add_input("blocks", tensor("i32", *STEP_INPUTS["blocks"]))
        k, v = (cache_encoding(self.kv, order) for order in ("keys", "values"))
        for op in graph.ops:
            if op.name == "attend":
                self._attend(b, op, k, v, length)
            else:
                b.copy(op)
        for n, o in enumerate(graph.outputs):
            b.output(b.mapped(o), graph.results[n] if graph.results else None)
        out = tidy(b.module())
        graphs = tuple(replace(g, name=STEP) if g.name == self.graph else g for g in out.graphs)
        return replace(out, graphs=graphs)

    def _attend(self, b: GraphBuilder, op: Op, k: Encoding, v: Encoding, length: int) -> None:
        names = extra_names(dict(op.attrs))
        q, key, value, *extras = (b.mapped(o) for o in op.operands)
        given = dict(zip(names, extras, strict=True))
        seq, pos = given.pop("seq"), given.pop("pos")
        heads, dims = b.type(key).shape[1], (b.type(key).shape[2], b.type(value).shape[2])
        window = cast(int, op.attr("window"))
        name = f"kv.{sum(s.startswith('kv.') for s in b.states)}"
        state = State(
            name, cast(int, heads), cast(int, dims[0]), cast(int, dims[1]), k, v, length, window or None
        )
        b.loc = op.loc
        b.multi("cache_append", b.state(state), key, value, seq, pos, as_=[])
        attrs: dict[str, Any] = {a: op.attr(a) for a in _SHARED}
        new = b.op(
            "attend_cache", f"@{name}", q, seq, pos, "%blocks", *given.values(), v_dim=dims[1], **attrs
        )
        b.replace(f"%{op.result.name}", new)

    def adapt(
        self, before: Module, after: Module, graph: str, inputs: Mapping[str, Array]
    ) -> CheckCase | None:
        if graph != self.graph:
            return None
        seq, pos = (inputs["seq"], inputs["pos"]) if "seq" in inputs else ((0,), (0,))
        blocks = block_table(seq, pos, self.block)
        return CheckCase(STEP, {**inputs, "blocks": blocks}, lambda results: results)


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


def _refuse_unless_causal(ops: tuple[Op, ...]) -> None:
    for op in ops:
        if op.name == "attend" and not op.attr("causal"):
            hint = "an encoder needs whole sequences: compile it as a plain module"
            raise RefusedError(
                "attention reads later tokens, so it cannot run one token at a time", where(op), hint
            )


def cache_encoding(text: str, order: str) -> Encoding:
    """`bf16` as the keys or values of a cache are laid out; other encodings as they stand. RefusedError if it
    parses to none, or to one that kernels do not make."""
    try:
        e = parse_encoding(text)
    except EncodingError as why:
        raise RefusedError(f"kv encoding: {why}", "incrementalize", KV_HINT) from why
    if e.ahead_of_time:
        message = f"kv encoding: {e} is only made ahead of time, for weights: {e.ahead_of_time}"
        raise RefusedError(message, "incrementalize", KV_HINT)
    return e.arranged(order)
