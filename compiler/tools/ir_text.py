"""`tilewright opt` and `tilewright exec` as functions: IR text in, IR text or a report out.

`optimize` runs passes on the text of any stage. `execute` runs what a text holds, graphs, plans or kernels,
by the reference interpreters and compiled, on given or random inputs, and says whether all agree. Independent
of the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tilewright.backends.registry import chosen
from tilewright.ir.errors import RefusedError, TilewrightError
from tilewright.ir.graph.core import Module, Value
from tilewright.ir.graph.random_values import RandomWeights, choose_sizes, random_inputs, signatures
from tilewright.ir.graph.verify import verify_module
from tilewright.ir.interp.graph import Dims, Interpreter
from tilewright.ir.interp.plan import PlanRunner, Runner
from tilewright.ir.interp.tile import run_kernel
from tilewright.ir.numbers import from_bits
from tilewright.ir.ops.base import Array
from tilewright.ir.plan.core import Program
from tilewright.ir.text.tile_printer import print_kernels
from tilewright.ir.tile.core import Buffer, Kernel
from tilewright.ir.tile.verify import verify_kernel
from tilewright.ir.types import FLOATS
from tilewright.passes.base import PassContext
from tilewright.passes.driver import (
    Options,
    explain,
    run_passes,
    tolerance_of,
    verify_ir,
)
from tilewright.passes.pipelines import LOWERING, RUNNABLE, pipeline_text
from tilewright.passes.record import print_ir
from tilewright.tools.ir_inputs import check_printed, check_room, check_symbols, levels_of, parsed
from tilewright.tools.ir_report import Ran, Report
from tilewright.tools.kernel_arrays import kernel_arrays
from tilewright.user_files import read_npy


# ------------------------------------------------------------------ opt
def optimize(
    text: str,
    passes: str = "",
    *,
    file: str = "<text>",
    verify_each: bool = False,
    check_each: bool = False,
    print_after: Sequence[str] = (),
    explain: bool | str = False,
    log: Callable[[str], None] = print,
) -> str:
    """The text after a pipeline (`""`: parsed, verified and printed). `explain`: log the rewrites of one
    pass, or of all."""
    ir = parsed(text, file)
    if isinstance(ir, tuple):
        for k in ir:
            verify_kernel(k)
        if passes.strip():
            raise RefusedError("passes work on modules and programs; this text contains only kernels", file)
        return print_kernels(ir)
    verify_ir(ir)
    check_printed(passes, print_after)
    ctx = PassContext()
    options = Options(verify_each=verify_each, check_each=check_each, print_after=tuple(print_after), log=log)
    result = run_passes(ir, passes, options, ctx)
    if explain:
        log(_explained(ctx, explain))
    return print_ir(result.ir)


def _explained(ctx: PassContext, which: bool | str) -> str:
    return explain(ctx.notes, which if isinstance(which, str) else "*") or "no rewrite fired or was declined"


# ------------------------------------------------------------------ report
# ------------------------------------------------------------------ exec
def execute(
    text: str,
    *,
    file: str = "<text>",
    inputs: Mapping[str, str | Path | Array] | None = None,
    symbols: Mapping[str, int] | None = None,
    targets: Sequence[str] = (),
    seed: int = 0,
    threads: int | None = None,
    output: Path | None = None,
    compiled_runner: Callable[[str, int], Runner] | None = None,
) -> Report:
    """Run everything in a text. `targets`: levels to compile for (default: the best here; `none`: interpret
    only). `compiled_runner(target, threads)` makes what runs a kernel compiled. Results go to `output` as
    NAME.npy."""
    ir = parsed(text, file)
    check_symbols(ir, symbols or {})
    given = {name: x if isinstance(x, np.ndarray) else _load(Path(x)) for name, x in (inputs or {}).items()}
    runners = _runners(targets, threads or 1, compiled_runner)
    if isinstance(ir, Module):
        verify_module(ir)
        runs = _run_module(
            ir, given, symbols or {}, seed, runners, () if compiled_runner else _backends(runners)
        )
    elif isinstance(ir, Program):
        verify_ir(ir)
        runs = _run_program(ir, given, symbols or {}, seed, runners)
    else:
        runs = [_run_one_kernel(k, given, symbols or {}, seed, runners) for k in ir]
    if output is not None:
        _save(runs, output)
    return Report(tuple(runs))


def _runners(
    targets: Sequence[str], threads: int, make: Callable[[str, int], Runner] | None
) -> dict[str, Runner]:
    if list(targets) == ["none"]:
        return {}
    names = (
        targets
        if make
        else list(dict.fromkeys(name for t in targets or ("native",) for name in levels_of(t)))
    )
    return {t: (make or compiled)(t, threads) for t in names}


def _backends(targets: Iterable[str]) -> tuple[str, ...]:
    """The backends that these targets belong to: those whose schedules the kernels of a graph need."""
    return tuple(dict.fromkeys(chosen(t)[0].name for t in targets))


def compiled(target: str, threads: int) -> Runner:
    """Kernels made ready for a target, each once, run in this process."""
    from tilewright.backends.base import KernelFunction

    backend, _ = chosen(target)
    built: dict[Kernel, KernelFunction] = {}

    def run(kernel: Kernel, arrays: Mapping[str, Array], symbols: Mapping[str, int]) -> None:
        if kernel not in built:
            built[kernel] = backend.function(kernel, target)
        built[kernel](arrays, symbols, threads)

    return run


def _load(path: Path) -> Array:
    return read_npy(path, "an .npy file of numbers")


def _save(runs: Sequence[Ran], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for r in runs:
        for name, x in r.results.items():
            safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
            np.save(folder / f"{safe if len(runs) == 1 else f'{r.name}.{safe}'}.npy", x, allow_pickle=False)


# ------------------------------------------------------------------ graphs and plans
def _run_module(
    module: Module,
    given: Mapping[str, Array],
    symbols: Mapping[str, int],
    seed: int,
    runners: Mapping[str, Runner],
    backends: tuple[str, ...],
) -> list[Ran]:
    weights = RandomWeights(seed).learn(module)
    program, why = _lowered(module, backends)
    runs = []
    for g in module.graphs:
        inputs = _inputs(module, g.name, g.inputs, given, symbols, seed)
        ran = Ran(
            "graph",
            g.name,
            dict(symbols),
            Interpreter(module, weights).run(g.name, inputs, symbols=symbols),
            tolerance_of(module),
        )
        if program is None:
            ran.notes.append(f"not compiled: {why}")
        else:
            ran.compare("tile interpreter", PlanRunner(program, weights).run(g.name, inputs, symbols))
            for target, runner in runners.items():
                ran.compare(target, PlanRunner(program, weights, runner).run(g.name, inputs, symbols))
        runs.append(ran)
    return runs


def _lowered(module: Module, backends: tuple[str, ...]) -> tuple[Program | None, str]:
    """The program of a module of any stage with the schedules of these backends, contractions' weights
    without an encoding stored as f32; or None and why there is none."""
    fused = any(op.region is not None for g in module.graphs for op in g.ops)
    stored = tuple((w.name, str(w.type.encoding)) for w in module.weights if w.type.encoding is not None)
    options: dict[str, dict[str, object]] = {
        "encode-weights": {"weights": "f32", "rules": stored},
        "lower": {"backends": backends},
    }
    try:
        return run_passes(module, pipeline_text(LOWERING if fused else RUNNABLE, options)).program, ""
    except TilewrightError as e:
        return None, str(e)


def _run_program(
    program: Program,
    given: Mapping[str, Array],
    symbols: Mapping[str, int],
    seed: int,
    runners: Mapping[str, Runner],
) -> list[Ran]:
    shell = signatures(program)
    weights = RandomWeights(seed).learn(shell)
    runs = []
    for p in program.plans:
        inputs = _inputs(shell, p.name, p.inputs, given, symbols, seed)
        ran = Ran("plan", p.name, dict(symbols), PlanRunner(program, weights).run(p.name, inputs, symbols))
        for target, runner in runners.items():
            ran.compare(target, PlanRunner(program, weights, runner).run(p.name, inputs, symbols))
        runs.append(ran)
    return runs


def _inputs(
    module: Module,
    name: str,
    values: Sequence[Value],
    given: Mapping[str, Array],
    symbols: Mapping[str, int],
    seed: int,
) -> dict[str, Array]:
    """What is given, and random arrays for the rest."""
    named, sizes = _named(values, given), _sizes(values, given, symbols)
    dims = Dims(choose_sizes(module, sizes))
    check_room({v.name: dims.shape(v.type) for v in values})
    return {**random_inputs(module, name, seed, sizes), **named}


def _named(values: Sequence[Value], given: Mapping[str, Array]) -> dict[str, Array]:
    names = [v.name for v in values]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise RefusedError(f"no input {unknown[0]!r}", "", f"inputs: {', '.join(names)}")
    return dict(given)


def _sizes(values: Sequence[Value], given: Mapping[str, Array], symbols: Mapping[str, int]) -> dict[str, int]:
    """Sizes that given inputs already fix, so that the random ones fit them."""
    out = dict(symbols)
    for v in values:
        if v.name in given:
            shape = given[v.name].shape
            out.update(
                {
                    str(d): n
                    for d, n in zip(v.type.shape, shape, strict=False)
                    if getattr(d, "is_Symbol", False)
                }
            )
    return out


# ------------------------------------------------------------------ kernels
def _run_one_kernel(
    kernel: Kernel,
    given: Mapping[str, Array],
    symbols: Mapping[str, int],
    seed: int,
    runners: Mapping[str, Runner],
) -> Ran:
    verify_kernel(kernel)
    sizes = {s: symbols.get(s, 64) for s in kernel.symbols}
    arrays = kernel_arrays(kernel, sizes, given, seed)
    written = {b.name: b for b in kernel.params if b.name in kernel.written()}
    reference = _run(run_kernel, kernel, arrays, sizes)
    ran = Ran("kernel", kernel.name, sizes, _values(reference, written))
    ran.notes += _unwritten(reference, kernel, given)
    for target, runner in runners.items():
        try:
            ran.compare(target, _values(_run(runner, kernel, arrays, sizes), written))
        except TilewrightError as e:
            ran.notes.append(f"{target}: {e}")
    return ran


def _unwritten(results: Mapping[str, Array], kernel: Kernel, given: Mapping[str, Array]) -> list[str]:
    """Of each fresh result, how many elements still are what they were: a scatter may mean it, most kernels
    do not."""
    notes = []
    for name in set(kernel.written()) - set(kernel.loaded()) - set(given):
        x = results[name].reshape(-1)
        raw = x.view(np.uint8).reshape(x.size, x.itemsize)
        left = (
            int((raw == (0xFF if kernel.buffer(name).dtype in FLOATS else 0xA5)).all(1).sum())
            if _dense(kernel, name)
            else 0
        )
        notes += [f"%{name}: {left} of {x.size} elements are not written"] if left else []
    return sorted(notes)


def _dense(kernel: Kernel, name: str) -> bool:
    b = kernel.buffer(name)
    return b.encoding is None and b.record is None


def _run(
    runner: Runner, kernel: Kernel, arrays: Mapping[str, Array], sizes: Mapping[str, int]
) -> dict[str, Array]:
    copies = {n: a.copy() for n, a in arrays.items()}
    runner(kernel, copies, sizes)
    return copies


def _values(arrays: Mapping[str, Array], written: Mapping[str, Buffer]) -> dict[str, Array]:
    plain = {n for n, b in written.items() if b.encoding is None and b.record is None}
    return {n: from_bits(arrays[n], b.dtype) if n in plain else arrays[n] for n, b in written.items()}
