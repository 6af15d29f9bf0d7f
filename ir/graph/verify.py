"""The rules of modules: `verify_module` raises a `VerifyError` with the number of the first one violated.

 1. Names of graphs are unique; so are those of weights and states together, of symbols, and of metadata.
 2. A symbol's name is an unreserved identifier, and its range satisfies 0 <= lo <= hi.
 3. Every %value of a graph is defined once: by an input or as one op's result.
 4. An op reads only %values defined before it.
 5. A @name is a weight where a tensor is read and a state where an op keeps one.
 6. An op is registered and has as many operands as its record says.
 7. Attributes are complete, known, of the declared kind, sorted and canonical.
 8. Result types are those that type inference gives for the operands and attributes.
 9. Dimensions are integers of 0 or more, or expressions over declared symbols; weights have integers only.
10. Element types are those of values, and an encoding can store the shape that it is used for.
11. Outputs are defined; results name either none or all of them, each differently.
12. Ops on one state agree on its heads and widths, and a cache is appended to before the step attends to it.
13. Regions are convex: replacing each by one op leaves the graph without a cycle.
14. A weight's source is known: functions exist, and inline data has the weight's shape.
15. A location has a line of 0 or more, and passes have kebab-case names.
16. A symbol that an op counts is counted by one op only, is used by none before it, and is in no input's and
    no result's shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import cast

from tilewright.ir.encoding import EncodingError
from tilewright.ir.errors import VerifyError
from tilewright.ir.graph.core import Apply, Graph, Inline, Module, Op, State, Stored, Weight, walk_expr
from tilewright.ir.ops import OPS, OpTypeError, find_op
from tilewright.ir.ops.base import counted_in
from tilewright.ir.ops.build import check_operands, complete_attrs
from tilewright.ir.ops.common import same_dim
from tilewright.ir.plan.step import RECENT_MOST, RECENT_STEP
from tilewright.ir.text.attributes import CONSTANTS
from tilewright.ir.text.graph_printer import graph_lines, op_text, state_line, weight_line
from tilewright.ir.types import BITS, TensorType, type_text
from tilewright.ir.weights.transforms import WEIGHT_FNS

_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PASS = re.compile(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*\Z")
#: element types of values; narrower ones exist only inside encodings
_VALUES = frozenset(d for d in BITS if d not in ("u1", "u2", "u3", "u4", "u5", "u6", "u7"))


def verify_module(module: Module) -> None:
    """Raise VerifyError for the first rule that the module breaks."""
    _names(module)
    symbols = frozenset(name for name, _ in module.symbols)
    for w in module.weights:
        _weight(w)
    for s in module.states:
        _state(s)
    weights, states = module.weight_map(), module.state_map()
    for g in module.graphs:
        _GraphVerifier(g, symbols, {n: w.type for n, w in weights.items()}, states).run()


def _fail(rule: int, message: str, where: str = "module", source: str = "", hint: str = "") -> None:
    raise VerifyError(message, where, hint, rule, source)


def _distinct(rule: int, what: str, names: Iterable[str], where: str = "module") -> None:
    seen: set[str] = set()
    for n in names:
        if n in seen:
            _fail(rule, f"{what} {n} is declared twice", where, hint="rename one of them")
        seen.add(n)


def _names(module: Module) -> None:
    _distinct(1, "graph", ("@" + g.name for g in module.graphs))
    _distinct(
        1,
        "weight or state",
        (*("@" + w.name for w in module.weights), *("@" + s.name for s in module.states)),
    )
    _distinct(1, "symbol", (n for n, _ in module.symbols))
    _distinct(1, "fact", (n for n, _ in module.meta))
    for name, r in module.symbols:
        if not _SYMBOL.match(name) or name in BITS or name in CONSTANTS:
            _fail(
                2,
                f"{name!r} is not a valid symbol name",
                hint="use letters, digits and _, and no reserved word",
            )
        if r.lo < 0 or (r.hi is not None and r.hi < r.lo):
            _fail(2, f"symbol {name} ranges over {r.lo}..{r.hi}, expected 0 <= lo <= hi")


def _weight(w: Weight) -> None:
    line = (
        weight_line(w) if not any(isinstance(e, Inline) for e in walk_expr(w.source)) else f"weight @{w.name}"
    )
    _type(w.type, frozenset(), f"weight @{w.name}", line, fixed=True)
    for e in walk_expr(w.source):
        if isinstance(e, Apply) and e.fn not in WEIGHT_FNS:
            _fail(
                14, f"no weight function {e.fn!r}; known: {', '.join(WEIGHT_FNS)}", f"weight @{w.name}", line
            )
        if isinstance(e, Stored) and not (e.file and e.key):
            _fail(14, "a stored tensor needs a file and a key", f"weight @{w.name}", line)
    if isinstance(w.source, Inline) and (w.source.shape, w.source.dtype) != (w.type.shape, w.type.dtype):
        got = type_text(TensorType(w.source.dtype, w.source.shape))
        _fail(14, f"inline data is {got}, expected {type_text(w.type)}", f"weight @{w.name}", line)


def _state(s: State) -> None:
    for what in ("heads", "k_dim", "v_dim", "context"):
        if getattr(s, what) < 1:
            _fail(12, f"{what} is {getattr(s, what)}, expected 1 or more", f"state @{s.name}", state_line(s))
    if s.select and s.context % s.select.block:
        _fail(12, f"context is {s.context}, expected whole blocks", f"state @{s.name}", state_line(s))
    if s.shares < 0 or s.shares % s.heads:
        _fail(12, f"shares is {s.shares}, expected a multiple of heads", f"state @{s.name}", state_line(s))
    if s.window is not None and s.window < 1:
        _fail(12, f"window is {s.window}, expected 1 or more, or none", f"state @{s.name}", state_line(s))
    if (
        s.recent < 0
        or s.recent % RECENT_STEP
        or s.recent > RECENT_MOST
        or s.recent
        and (s.evicts or s.select)
    ):
        what = f"expected a multiple of {RECENT_STEP} up to {RECENT_MOST}, without evicts or select"
        _fail(12, f"recent is {s.recent}, {what}", f"state @{s.name}", state_line(s))
    for e, c in ((s.k, s.keys), (s.v, s.values)):
        try:
            e.check(c.shape)
        except EncodingError as err:
            _fail(10, str(err), f"state @{s.name}", state_line(s))


def _type(t: TensorType, symbols: frozenset[str], where: str, source: str, fixed: bool = False) -> None:
    if t.dtype not in _VALUES:
        _fail(
            10,
            f"{t.dtype} is not an element type of values",
            where,
            source,
            f"use one of {', '.join(sorted(_VALUES))}",
        )
    for d in t.shape:
        _dim(d, symbols, where, source, fixed)
    if t.encoding is not None and all(isinstance(d, int) for d in t.shape):
        try:
            t.encoding.check(cast("tuple[int, ...]", t.shape))
        except EncodingError as e:
            _fail(10, str(e), where, source)


def _dim(d: object, symbols: frozenset[str], where: str, source: str, fixed: bool) -> None:
    if isinstance(d, int):
        if d < 0:
            _fail(9, f"dimension {d} is negative", where, source)
        return
    if fixed:
        _fail(9, f"dimension {d} of a weight is not an integer", where, source)
    unknown = sorted(str(s) for s in d.free_symbols if str(s) not in symbols)  # type: ignore[attr-defined]
    if unknown:
        _fail(
            9,
            f"dimension {d} uses {unknown[0]}, which is not declared",
            where,
            source,
            f"add `symbol {unknown[0]} in 1..`",
        )


class _GraphVerifier:
    """One graph against rules 3 to 15."""

    def __init__(
        self,
        g: Graph,
        symbols: frozenset[str],
        weights: Mapping[str, TensorType],
        states: Mapping[str, State],
    ) -> None:
        self.g, self.symbols, self.weights, self.states = g, symbols, weights, states
        self.types: dict[str, TensorType] = {}
        self.attended: set[str] = set()
        counted = counted_in(g.ops)
        self.waiting, self.counted = set(counted), set(counted)
        self.twice = {s for s in counted if counted.count(s) > 1}

    def run(self) -> None:
        head = graph_lines(Graph(self.g.name, self.g.inputs, (), ()), {})[0]
        for v in self.g.inputs:
            self.define(v.name, v.type, f"graph @{self.g.name}", head)
        for op in self.g.ops:
            try:
                self.op(op)
            except OpTypeError as e:
                _fail(8, str(e), self.where(op), op_text(op))
        self.outputs()
        self.regions()

    def where(self, op: Op) -> str:
        place = f", {op.loc.file}:{op.loc.line}" if op.loc else ""
        return f"graph @{self.g.name}{place}" + (f" ({op.loc.scope})" if op.loc and op.loc.scope else "")

    def define(self, name: str, t: TensorType, where: str, source: str) -> None:
        self.known(t.shape, where, source)
        if name in self.types:
            _fail(3, f"%{name} is defined twice", where, source, "rename one of the results")
        _type(t, self.symbols, where, source)
        self.types[name] = t

    def known(self, dims: Iterable[object], where: str, source: str) -> None:
        """Rule 16: no symbol is used before the op that counts it."""
        used = {str(s) for d in dims for s in getattr(d, "free_symbols", ())}
        for s in sorted(used & self.waiting):
            _fail(16, f"{s} is used before an op counts it", where, source, "move that op to the front")

    def count(self, op: Op, where: str, text: str) -> None:
        for s in counted_in((op,)):
            if s in self.twice:
                _fail(16, f"{s} is counted twice", where, text, "count a symbol of its own")
            self.waiting.discard(s)

    def op(self, op: Op) -> None:
        where, text = self.where(op), op_text(op)
        self.count(op, where, text)
        if op.name not in OPS:
            try:
                find_op(op.name)
            except OpTypeError as e:
                _fail(6, str(e), where, text)
        record = OPS[op.name]
        try:
            check_operands(record, op.operands)
        except OpTypeError as e:
            _fail(6, str(e), where, text)
        operands = op.operands[1:] if record.state else op.operands
        types = [self.read(o, where, text) for o in operands]
        try:
            full = tuple(sorted(complete_attrs(record, types, dict(op.attrs)).items()))
        except OpTypeError as e:
            _fail(7, str(e), where, text)
        if full != op.attrs or len(dict(op.attrs)) != len(op.attrs):
            _fail(7, f"attributes are not in canonical form; expected {dict(full)}", where, text)
        self.attr_dims(op, where, text)
        self.inferred(op, record.infer(types, dict(op.attrs)), where, text)
        if record.state:
            self.state_op(op, types, where, text)
        self.provenance(op, where, text)
        for r in op.results:
            self.define(r.name, r.type, where, text)

    def read(self, operand: str, where: str, text: str) -> TensorType:
        name = operand[1:]
        if operand[0] == "%":
            if name not in self.types:
                later = any(r.name == name for op in self.g.ops for r in op.results)
                _fail(4, f"{operand} is {'defined only later' if later else 'not defined'}", where, text)
            return self.types[name]
        if name not in self.weights:
            kind = "is a state, expected a weight" if name in self.states else "is not declared"
            _fail(5, f"{operand} {kind}", where, text)
        return self.weights[name]

    def attr_dims(self, op: Op, where: str, text: str) -> None:
        for _, value in op.attrs:
            for d in value if isinstance(value, tuple) else (value,):
                if hasattr(d, "free_symbols"):
                    _dim(d, self.symbols, where, text, False)
                    self.known((d,), where, text)

    def inferred(self, op: Op, types: Iterable[TensorType], where: str, text: str) -> None:
        want, got = list(types), [r.type for r in op.results]
        if len(want) != len(got) or any(not _same_type(a, b) for a, b in zip(want, got, strict=True)):
            expected = ", ".join(map(type_text, want)) or "no result"
            _fail(
                8,
                f"{op.name} gives {expected}, but the text declares {', '.join(map(type_text, got))}",
                where,
                text,
            )

    def state_op(self, op: Op, types: list[TensorType], where: str, text: str) -> None:
        name = op.operands[0][1:]
        if name not in self.states:
            kind = "is a weight, expected a state" if name in self.weights else "is not declared"
            _fail(5, f"@{name} {kind}", where, text)
        s = self.states[name]
        if op.name == "cache_append":
            want = ((s.heads, s.k_dim), (s.heads, s.v_dim))
            if any(not all(map(same_dim, t.shape[1:], w)) for t, w in zip(types, want, strict=False)):
                _fail(
                    12,
                    f"k and v do not have {s.heads} heads of sizes {s.k_dim} and {s.v_dim} as @{name} has",
                    where,
                    text,
                )
            if name in self.attended:
                _fail(
                    12,
                    f"@{name} is appended to after the step has attended to it",
                    where,
                    text,
                    "move the cache_append before the attention",
                )
        elif op.name in ("attend_cache", "attend_blocks"):
            self.attended.add(name)
            width = op.attr("v_dim") or types[0].shape[2]
            if (op.attr("kv_heads"), types[0].shape[2], width) != (s.heads, s.k_dim, s.v_dim):
                got = f"{op.attr('kv_heads')} heads of {types[0].shape[2]} and {width}"
                _fail(12, f"reads {got}, but @{name} holds {s.heads} of {s.k_dim} and {s.v_dim}", where, text)

    def provenance(self, op: Op, where: str, text: str) -> None:
        if op.loc is not None and (op.loc.line < 0 or "\n" in op.loc.file + op.loc.scope):
            _fail(15, f"location {op.loc.file!r}:{op.loc.line} is not a valid source location", where, text)
        for p in op.passes:
            if not _PASS.match(p):
                _fail(15, f"{p!r} is not a valid pass name", where, text)

    def outputs(self) -> None:
        where, source = f"graph @{self.g.name}", "return " + ", ".join(self.g.outputs)
        for o in self.g.outputs:
            if not (o[1:] in self.types if o[0] == "%" else o[1:] in self.weights):
                _fail(11, f"output {o} is not defined", where, source)
            dims = self.types[o[1:]].shape if o[0] == "%" else ()
            for s in sorted(str(s) for d in dims for s in getattr(d, "free_symbols", ())):
                if s in self.counted:
                    _fail(16, f"output {o} has a size that only a run counts, {s}", where, source)
        if self.g.results and len(self.g.results) != len(self.g.outputs):
            _fail(11, f"{len(self.g.outputs)} outputs have {len(self.g.results)} names", where, source)
        _distinct(11, "result", self.g.results, where)

    def regions(self) -> None:
        """Kahn's order over regions and single ops; what is left over lies on a cycle."""
        group = {n: f"r{op.region}" if op.region is not None else n for n, op in enumerate(self.g.ops)}
        maker = {r.name: n for n, op in enumerate(self.g.ops) for r in op.results}
        after: dict[object, set[object]] = {g: set() for g in group.values()}
        before: dict[object, int] = dict.fromkeys(after, 0)
        for n, op in enumerate(self.g.ops):
            for o in op.operands:
                source = group[maker[o[1:]]] if o[0] == "%" and o[1:] in maker else group[n]
                if source != group[n] and group[n] not in after[source]:
                    after[source].add(group[n])
                    before[group[n]] += 1
        ready = [g for g, count in before.items() if not count]
        while ready:
            for g in after[ready.pop()]:
                before[g] -= 1
                if not before[g]:
                    ready.append(g)
        stuck = [n for n in group if before[group[n]] and isinstance(group[n], str)]
        if stuck:
            op = self.g.ops[stuck[0]]
            message = (
                f"region {group[stuck[0]]} is not convex: it reads values that depend on its own results"
            )
            _fail(13, message, self.where(op), op_text(op), "split the region")


def _same_type(a: TensorType, b: TensorType) -> bool:
    same = a.dtype == b.dtype and a.encoding == b.encoding and a.rank == b.rank
    return same and all(map(same_dim, a.shape, b.shape))
