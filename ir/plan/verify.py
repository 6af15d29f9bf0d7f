"""The rules of programs: `verify_program` raises a `VerifyError` with the number of the first one violated.

1. Names of kernels, plans and symbols are unique; so are those of weights and states together, and of a
   plan's inputs and buffers together.
2. Dimensions use declared symbols (and, for caches, `Q` and `slots`); weights have integer dimensions only.
3. A call names a kernel and gives as many arguments as it has parameters, each an input, a buffer, a weight
   or a cache's k or v.
4. A call binds the kernel's symbols, in its order; its conditions use symbols of the program or the kernel.
5. An argument is stored as the parameter says: the same element type, or the same encoding.
6. Inputs and weights are only read; a buffer is written before it is read; what a call writes is passed to it
   only once.
7. A buffer has 0 bytes or more, and once it has an offset, is inside the arena.
8. Results have distinct names and are inputs or buffers.
9. Symbols range over 0 or more, to less than 2^31; so do dimensions and bindings, which are integers for all
   values of the symbols.
10. An argument is at least as large as the parameter under the call's bindings; packed arguments are not
    empty when a kernel runs.
11. A buffer is large enough for its type, starts at a multiple of 64, and shares no byte with a buffer that
    is live at the same time.
12. Everything that is read, and every result, has been completely written by earlier calls, whichever
    conditions hold.
13. Parameters declare no value ranges or packed layouts of their own, since only encodings guarantee them.
14. A symbol that a plan counts is used by that plan alone, and is in the shape of no input and no result; its
    buffer is one i32, and no call up to the last one that writes it depends on the symbol.

Rules 9 to 13 are proved for all values of the symbols, in `plan.bounds` and `plan.written`. Kernels are
verified before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tilewright.ir.encoding import Encoding
from tilewright.ir.errors import VerifyError
from tilewright.ir.plan.core import Call, Plan, PlanBuffer, Program, counted_after, counted_symbols
from tilewright.ir.plan.step import CACHE_SYMBOLS
from tilewright.ir.plan.written import check_sizes
from tilewright.ir.text.plan_printer import buffer_text, call_text
from tilewright.ir.tile.core import Buffer, Kernel
from tilewright.ir.types import TensorType, type_text

#: symbols that every step has


def verify_program(program: Program) -> None:
    """Raise VerifyError for the first rule that the program violates. Kernels are verified separately."""
    _distinct("kernel", (k.name for k in program.kernels))
    _distinct("plan", (p.name for p in program.plans))
    _distinct("symbol", (n for n, _ in program.symbols))
    _distinct("weight or state", (*(w.name for w in program.weights), *(s.name for s in program.states)))
    symbols = {n for n, _ in program.symbols} | (set(CACHE_SYMBOLS) if program.states else set())
    fixed = {"@" + w.name: w.type for w in program.weights}
    for name, t in fixed.items():
        _dims(t.shape, set(), f"weight {name}")
    caches = {f"@{s.name}.{c.name}": c.type for s in program.states for c in s.streams}
    kernels = {k.name: k for k in program.kernels}
    for p in program.plans:
        _Plan(p, kernels, symbols, fixed, caches).run()
        _check_counted(program, p)
    check_sizes(program)


def _fail(rule: int, message: str, where: str, source: str = "", hint: str = "") -> None:
    raise VerifyError(message, where, hint, rule, source)


def _distinct(what: str, names: Iterable[str], where: str = "program", rule: int = 1) -> None:
    seen: set[str] = set()
    for n in names:
        if n in seen:
            _fail(rule, f"{what} {n} is declared twice", where, hint="rename one of them")
        seen.add(n)


def _dims(dims: Iterable[object], symbols: set[str], where: str, source: str = "") -> None:
    for d in dims:
        unknown = sorted(str(s) for s in getattr(d, "free_symbols", ()) if str(s) not in symbols)
        if unknown:
            _fail(
                2,
                f"dimension {d} uses {unknown[0]}, which is not declared",
                where,
                source,
                f"add `symbol {unknown[0]} in 1..`",
            )
        if isinstance(d, int) and d < 0:
            _fail(2, f"dimension {d} is negative", where, source)


def _uses(dims: Iterable[object], symbol: str) -> bool:
    return any(str(s) == symbol for d in dims for s in getattr(d, "free_symbols", ()))


def _check_counted(program: Program, plan: Plan) -> None:
    """Rule 14, after rules 1 to 8."""
    where = f"plan @{plan.name}"
    declared = {n for n, _ in program.symbols}
    types = {"%" + b.name: b.type for b in plan.buffers}
    _distinct("counted symbol", (name for name, _ in plan.counted), where, 14)
    for (name, ref), last in zip(plan.counted, counted_after(program, plan), strict=True):
        if name not in declared or ref not in types or last < 0:
            _fail(14, f"{name} = {ref}: expected a declared symbol and a buffer that a call writes", where)
        if types[ref].dtype != "i32" or types[ref].encoding is not None or types[ref].shape != (1,):
            _fail(14, f"{ref} is {type_text(types[ref])}, expected i32[1], the value of {name}", where)
        for c in plan.calls[: last + 1]:
            shapes = [d for a in c.args if a in types for d in types[a].shape]
            if _uses((*(d for _, d in c.symbols), *shapes), name) or any(w.symbol == name for w in c.when):
                _fail(14, f"depends on {name}, which is not counted yet", where, call_text(c))
    own = {name for name, _ in plan.counted}
    for name in sorted(counted_symbols(program)):
        if name not in own and any(_uses((d for _, d in c.symbols), name) for c in plan.calls):
            _fail(14, f"uses {name}, which another plan counts", where)
        outer = [v.type for v in plan.inputs] + [types[r] for _, r in plan.outputs if r in types]
        if any(_uses(t.shape, name) for t in outer):
            _fail(14, f"an input or result has a size that only a run counts, {name}", where)


class _Plan:
    """Checks one plan against rules 1 to 8."""

    def __init__(
        self, plan: Plan, kernels: Mapping[str, Kernel], symbols: set[str], weights: Mapping[str, TensorType],
        caches: Mapping[str, TensorType],
    ) -> None:  # fmt: skip
        self.plan, self.kernels, self.symbols, self.where = plan, kernels, symbols, f"plan @{plan.name}"
        self.buffers = {"%" + b.name: b.type for b in plan.buffers}
        self.read_only = {**{"%" + v.name: v.type for v in plan.inputs}, **weights}
        self.types = {**self.read_only, **self.buffers, **caches}
        # buffers without elements need no write
        self.written = {"%" + b.name for b in plan.buffers if 0 in b.type.shape}

    def run(self) -> None:
        _distinct(
            "input or buffer",
            (*(v.name for v in self.plan.inputs), *(b.name for b in self.plan.buffers)),
            self.where,
        )
        for v in self.plan.inputs:
            _dims(v.type.shape, self.symbols, self.where)
        for b in self.plan.buffers:
            self.buffer(b)
        for c in self.plan.calls:
            self.call(c, call_text(c))
        self.outputs()

    def buffer(self, b: PlanBuffer) -> None:
        text = buffer_text(b)
        _dims(b.type.shape, self.symbols, self.where, text)
        if b.nbytes < 0:
            _fail(7, f"%{b.name} has {b.nbytes} bytes", self.where, text)
        if b.offset >= 0 and b.offset + b.nbytes > self.plan.arena_bytes:
            end = b.offset + b.nbytes
            _fail(
                7,
                f"%{b.name} ends at {end}, beyond the arena of {self.plan.arena_bytes} bytes",
                self.where,
                text,
            )

    def call(self, c: Call, text: str) -> None:
        if c.kernel not in self.kernels:
            _fail(
                3,
                f"no kernel @{c.kernel}",
                self.where,
                text,
                f"kernels: {', '.join('@' + k for k in self.kernels)}",
            )
        kernel = self.kernels[c.kernel]
        if len(c.args) != len(kernel.params):
            _fail(
                3, f"@{kernel.name} takes {len(kernel.params)} arguments, got {len(c.args)}", self.where, text
            )
        if tuple(name for name, _ in c.symbols) != kernel.symbols:
            want = ", ".join(kernel.symbols) or "nothing"
            _fail(4, f"@{kernel.name} needs values for {want}, in this order", self.where, text)
        _dims((d for _, d in c.symbols), self.symbols, self.where, text)
        for w in c.when:
            if w.symbol not in self.symbols | set(kernel.symbols):
                _fail(4, f"the condition on {w.symbol} does not name a symbol", self.where, text)
        written = set(kernel.written())
        for param, arg in zip(kernel.params, c.args, strict=True):
            self.argument(param, arg, param.name in written, text)
            self.once(kernel, c, param, arg, text)
        self.written |= {a for p, a in zip(kernel.params, c.args, strict=True) if p.name in written}

    def argument(self, param: Buffer, arg: str, written: bool, text: str) -> None:
        if arg not in self.types:
            _fail(3, f"{arg} is not an input, buffer, weight or cache", self.where, text)
        if written and arg in self.read_only:
            _fail(6, f"writes {arg}, which is read-only", self.where, text)
        if not written and arg in self.buffers and arg not in self.written:
            _fail(6, f"reads {arg}, which has not been written", self.where, text)
        want, got = (
            _stored(param.dtype, param.encoding),
            _stored(self.types[arg].dtype, self.types[arg].encoding),
        )
        if param.record is None and want != got:
            _fail(5, f"{arg} is stored as {got}, parameter %{param.name} as {want}", self.where, text)

    def once(self, kernel: Kernel, c: Call, param: Buffer, arg: str, text: str) -> None:
        """Kernels are verified parameter by parameter: a store to one must not change what is read from
        another."""
        same = [
            p.name for p, a in zip(kernel.params, c.args, strict=True) if a == arg and p.name != param.name
        ]
        if same and param.name in kernel.written():
            hint = "pass a separate buffer for each; to update in place, load and store one parameter"
            _fail(
                6,
                f"{arg} is passed for %{same[0]} and for %{param.name}, which the kernel writes",
                self.where,
                text,
                hint,
            )

    def outputs(self) -> None:
        _distinct("result", (name for name, _ in self.plan.outputs), self.where, 8)
        for name, ref in self.plan.outputs:
            if not (ref in self.written and ref in self.buffers) and ref not in {
                "%" + v.name for v in self.plan.inputs
            }:
                _fail(
                    8,
                    f"result {name} is {ref}, which is neither an input nor a buffer that is written",
                    self.where,
                )


def _stored(dtype: str, encoding: Encoding | None) -> str:
    """How values are stored: row-major encodings are the same as arrays of their dtype."""
    held, packed = TensorType(dtype, (), encoding).stored
    return held if packed is None else str(packed)
