"""The printer of programs, the inverse of `parse_program`: symbols, states, weights, kernels, then plans."""

from __future__ import annotations

from tilewright.ir.plan.core import Call, Plan, PlanBuffer, Program
from tilewright.ir.text.attributes import attrs_text, name_text, operand_text, quoted, word_text
from tilewright.ir.text.graph_printer import header_lines
from tilewright.ir.text.tile_printer import print_kernel
from tilewright.ir.types import type_text


def print_program(program: Program) -> str:
    """The canonical text of a program, in any state of lowering."""
    lines = header_lines(program.meta, program.symbols, program.states, program.weights)
    for k in program.kernels:
        lines += ["", print_kernel(k).strip("\n")]
    for p in program.plans:
        lines += ["", *plan_lines(p)]
    return "\n".join(lines).lstrip("\n") + "\n"


def plan_lines(p: Plan) -> list[str]:
    inputs = ", ".join(f"{name_text('%', v.name)}: {type_text(v.type)}" for v in p.inputs)
    outs = ", ".join(f"{word_text(name)} = {operand_text(ref)}" for name, ref in p.outputs)
    return [
        f"plan {name_text('@', p.name)}({inputs}) arena {p.arena_bytes} {{",
        *("  " + buffer_text(b) for b in p.buffers),
        *(f"  symbol {name} = {operand_text(ref)}" for name, ref in p.counted),
        *("  " + call_text(c) for c in p.calls),
        f"  return {outs}".rstrip(),
        "}",
    ]


def buffer_text(b: PlanBuffer) -> str:
    place = f" at {b.offset}" if b.offset >= 0 else ""
    return f"buffer {name_text('%', b.name)} : {type_text(b.type)} bytes {b.nbytes}{place}"


def call_text(c: Call) -> str:
    """`call @linear_0(%x, @w, %y) {M=T} when M <= 4 from "model.py:7"`."""
    args = ", ".join(map(operand_text, c.args))
    symbols = " " + attrs_text(c.symbols) if c.symbols else ""
    when = " when " + " and ".join(f"{w.symbol} {w.op} {w.value}" for w in c.when) if c.when else ""
    source = f" from {quoted(c.source)}" if c.source else ""
    return f"call {name_text('@', c.kernel)}({args}){symbols}{when}{source}"
