"""Modules as text; `parse_module` is the inverse.

In: any `Module`, also one that breaks invariants. Out: its canonical text. Independent of files, ops'
meaning or passes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping

from tilewright.ir.graph.core import (
    Graph,
    Inline,
    Location,
    Module,
    Op,
    State,
    Stored,
    Value,
    Weight,
    WeightExpr,
)
from tilewright.ir.text.attributes import (
    attrs_text,
    name_text,
    operand_text,
    quoted,
    value_text,
    word_text,
)
from tilewright.ir.types import SymbolRange, TensorType, type_text

_PLAIN_FILE = re.compile(r'[^\s"\[\]#:]+\Z')
_PLAIN_SCOPE = re.compile(r'[^\s"\[\]#]+\Z')


def print_module(module: Module) -> str:
    """Metadata, symbols, states, weights, then graphs; one entry per line."""
    lines = header_lines(module.meta, module.symbols, module.states, module.weights)
    types = {"@" + w.name: w.type for w in module.weights}
    for g in module.graphs:
        lines += [""] * bool(lines) + graph_lines(g, types)
    return "\n".join(lines) + "\n"


def header_lines(
    meta: Iterable[tuple[str, object]],
    symbols: Iterable[tuple[str, SymbolRange]],
    states: Iterable[State],
    weights: Iterable[Weight],
) -> list[str]:
    """What modules and programs share."""
    lines = [f"meta {word_text(k)} = {value_text(v)}" for k, v in meta]
    lines += [f"symbol {name} in {r.lo}..{'' if r.hi is None else r.hi}" for name, r in symbols]
    lines += [state_line(s) for s in states]
    return lines + [weight_line(w) for w in weights]


def weight_line(w: Weight) -> str:
    return f"weight {name_text('@', w.name)} : {type_text(w.type)} = {source_text(w.source)}"


def source_text(e: WeightExpr) -> str:
    """`file("model.safetensors", "key")`, `inline(f32[2], "base64")`, `concat{axis=0}(…, …)`."""
    if isinstance(e, Stored):
        return f"file({quoted(e.file)}, {quoted(e.key)})"
    if isinstance(e, Inline):
        return f'inline({type_text(TensorType(e.dtype, e.shape))}, "{base64.b64encode(e.data).decode()}")'
    return f"{e.fn}{attrs_text(e.attrs)}({', '.join(map(source_text, e.args))})"


def state_line(s: State) -> str:
    window = "none" if s.window is None else s.window
    sizes = f"heads={s.heads}, k_dim={s.k_dim}, v_dim={s.v_dim}"
    flags = (", evicts=1" if s.evicts else "") + (", observed=1" if s.observed else "")
    flags += (f", shares={s.shares}" if s.shares else "") + (f", select={s.select}" if s.select else "")
    flags += f", recent={s.recent}" if s.recent else ""
    return (
        f"state {name_text('@', s.name)} : cache({sizes}, k={s.k}, v={s.v}, context={s.context}, "
        f"window={window}{flags})"
    )


def graph_lines(g: Graph, weight_types: Mapping[str, TensorType]) -> list[str]:
    inputs = ", ".join(f"{name_text('%', v.name)}: {type_text(v.type)}" for v in g.inputs)
    head = f"graph {name_text('@', g.name)}({inputs}) -> {_results(g, weight_types)} {{"
    tail = ["  return" + "".join(f"{',' if n else ''} {operand_text(o)}" for n, o in enumerate(g.outputs))]
    return [head, *("  " + op_text(op) for op in g.ops), *tail, "}"]


def _results(g: Graph, weight_types: Mapping[str, TensorType]) -> str:
    types = {**weight_types, **{"%" + n: v.type for n, v in g.values().items()}}
    texts = [type_text(types[o]) if o in types else "?" for o in g.outputs]
    if g.results:
        names = [*g.results, *[""] * (len(texts) - len(g.results))]
        texts = [f"{word_text(n)}: {t}" for n, t in zip(names, texts, strict=False)]
    return texts[0] if len(texts) == 1 and not g.results else f"({', '.join(texts)})"


def op_text(op: Op) -> str:
    """One op as a line: `%y = linear %x, @w : f32[T, 8] in r0  # model.py:7 layers.0 [fuse]`."""
    results = ", ".join(_value(r) for r in op.results) + " = " if op.results else ""
    operands = " " + ", ".join(map(operand_text, op.operands)) if op.operands else ""
    attrs = " " + attrs_text(op.attrs) if op.attrs else ""
    types = " : " + ", ".join(type_text(r.type) for r in op.results) if op.results else ""
    region = "" if op.region is None else f" in r{op.region}"
    return f"{results}{op.name}{operands}{attrs}{types}{region}{_origin(op.loc, op.passes)}"


def _value(v: Value) -> str:
    return name_text("%", v.name)


def _origin(loc: Location | None, passes: tuple[str, ...]) -> str:
    if loc is None and not passes:
        return ""
    made = f" [{', '.join(passes)}]" if passes else ""
    return f"  #{'' if loc is None else ' ' + location_text(loc)}{made}"


def location_text(loc: Location) -> str:
    """`file.py:12 layers.0`, parts quoted where they hold blanks or brackets."""
    file = loc.file if _PLAIN_FILE.match(loc.file) else quoted(loc.file)
    scope = loc.scope if not loc.scope or _PLAIN_SCOPE.match(loc.scope) else quoted(loc.scope)
    return f"{file}:{loc.line}" + (f" {scope}" if scope else "")
