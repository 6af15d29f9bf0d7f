"""Checks the requests of `opt` and `exec` before anything runs: texts, passes, levels, symbols, sizes.

In: a text and a user's request. Out: parsed IR and names; RefusedError for what would be ignored or could not
be carried out. Independent of running.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Module
from tilewright.ir.plan.core import Program
from tilewright.ir.text.plan_parser import parse_ir
from tilewright.ir.tile.core import Kernel
from tilewright.passes.base import parse_pipeline
from tilewright.runtime.cpu import available_bytes

#: arrays of one size that are held at once: the given ones, each runner's copies, and what they compute
COPIES = 6


def parsed(text: str, file: str) -> Module | Program | tuple[Kernel, ...]:
    """What a text holds; RefusedError for a text that holds nothing, of which all would be true."""
    ir = parse_ir(text, file)
    if not (ir if isinstance(ir, tuple) else ir.graphs if isinstance(ir, Module) else ir.plans):
        raise RefusedError(
            "it contains no graph, plan or kernel", file, "pass IR as `tilewright dump` prints it"
        )
    return ir


def check_printed(passes: str, print_after: Sequence[str]) -> None:
    """RefusedError for a pass that is to be printed after and does not run."""
    names = [p.name for p in parse_pipeline(passes)]
    unknown = sorted(set(print_after) - {"*", *names})
    if unknown:
        hint = f"the pipeline runs {', '.join(dict.fromkeys(names)) or 'no pass'}"
        raise RefusedError(f"no pass {unknown[0]!r} in the pipeline", "--print-ir-after", hint)


def levels_of(text: str) -> list[str]:
    """Names of the targets in a user's request, each of which this machine can run."""
    from tilewright.backends.registry import UnknownTargetError, chosen
    from tilewright.runtime.cpu import cpu_features

    try:
        backend, names = chosen(text)
    except UnknownTargetError as e:
        raise RefusedError(str(e), "--target", "`none`, by itself, interprets only") from None
    lacking = {name: [f for f in needs if f not in cpu_features()] for name, needs in backend.targets.items()}
    for name in names:
        if lacking[name]:
            hint = f"this machine runs {', '.join(t for t, missing in lacking.items() if not missing)}"
            raise RefusedError(f"this CPU lacks {', '.join(lacking[name])} for {name}", "--target", hint)
    return list(names)


def check_symbols(ir: Module | Program | tuple[Kernel, ...], given: Mapping[str, int]) -> None:
    """RefusedError for a size of a symbol that the text does not have, or outside the symbol's range."""
    ranges: dict[str, tuple[int, int | None]]
    if isinstance(ir, tuple):
        ranges = {s: (0, None) for k in ir for s in k.symbols}
    else:
        ranges = {name: (r.lo, r.hi) for name, r in ir.symbols}
    for name, n in given.items():
        if name not in ranges:
            raise RefusedError(f"no symbol {name!r}", "--set", f"symbols: {', '.join(ranges) or 'none'}")
        lo, hi = ranges[name]
        if n < lo or (hi is not None and n > hi):
            raise RefusedError(f"{name} is {lo} to {hi or 'any size'}, got {n}", "--set")


def check_room(sizes: Mapping[str, Sequence[int]]) -> None:
    """RefusedError for arrays that would take more memory than there is: every way of running holds copies of
    all of them, and the interpreters hold them in 64 bits."""
    room = available_bytes() // (8 * COPIES)
    name, dims = max(sizes.items(), key=lambda x: math.prod(x[1]), default=("", (0,)))
    if sum(map(math.prod, sizes.values())) > room:
        shape = ", ".join(map(str, dims))
        message = (
            f"arrays of {sum(map(math.prod, sizes.values())):,} values (%{name}: [{shape}]) do not "
            "fit into memory"
        )
        raise RefusedError(message, "exec", f"choose smaller sizes: at most {room:,} values fit here")
