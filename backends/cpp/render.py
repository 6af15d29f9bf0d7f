"""Renders a Tile IR kernel as one C++ function: schedules as an if-chain, the grid as loops over threads.

In: a kernel and a target. Out: the text of `static void k_NAME(void* const* P, const int64_t* D, int64_t tid,
int64_t nt)`; P: buffers in parameter order, D: run-time symbols in `kernel.symbols` order. All threads of a
team call it; it holds no barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tilewright.backends.cpp import bitdot, dot, loads, values
from tilewright.backends.cpp import reductions as folds
from tilewright.backends.cpp.context import Bound, Context, Rule
from tilewright.backends.cpp.literals import c_function
from tilewright.backends.cpp.nodes import Item, build
from tilewright.backends.cpp.prefetch import DECLARED
from tilewright.backends.cpp.rows import block_heights
from tilewright.backends.cpp.sizes import Sizes as CallSizes
from tilewright.backends.cpp.sizes import used
from tilewright.backends.cpp.statements import block, declare
from tilewright.backends.cpp.target import Target
from tilewright.backends.staging import Staged, stage
from tilewright.ir.affine import Affine
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import PANEL
from tilewright.ir.tile.core import GridAxis, Kernel, Schedule, bind
from tilewright.ir.tile.expand import expand_encodings
from tilewright.ir.tile.ops import PRIMITIVES
from tilewright.ir.tile.ranges import scalar_ranges

#: from least to best; a schedule for one level also serves those above it
LEVELS = ("baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16")

RULES: dict[str, Rule] = {
    **dict.fromkeys(PRIMITIVES, values.elementwise),
    "const": values.const, "cast": values.cast, "bitcast": values.bitcast, "within": values.within,
    "expand": values.expand,
    "transpose": values.transpose, "reshape": values.reshape, "iota": values.iota, "index": values.index,
    "carry": values.carry,
    "reduce": folds.reduce, "scan": folds.scan, "lookup": folds.lookup, "load": loads.load, "dot": dot.dot,
    "bit_dot": bitdot.bit_dot,
}  # fmt: skip

Sizes = Mapping[str, int]

#: the slow memory accesses, as functions: codes at any bit offset, and lanes that are not consecutive, some
#: of which may be outside
_HELPERS = """#ifndef TW_GATHER
#define TW_GATHER
static inline uint8_t tw_bits(const char* p, int64_t at, int bits) {
  const uint8_t* q = (const uint8_t*)p + (at >> 3);
  const int s = at & 7;
  return (uint8_t)(((q[0] | (s + bits > 8 ? q[1] << 8 : 0)) >> s) & ((1 << bits) - 1));
}
template <class T, int bits>
static __attribute__((noinline, unused)) void tw_gather(
    T* x, const char* p, int64_t at, T other, int n, int64_t step, int64_t lo, int64_t hi,
    int m, int64_t step2, int64_t lo2, int64_t hi2) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < m; ++j) {
      const int64_t k = at + i * step + j * step2;
      T e = other;
      if (i >= lo && i < hi && j >= lo2 && j < hi2) {
        if constexpr (bits) e = tw_bits(p, k, bits); else e = tw_load<T>(p + k / 8);
      }
      x[i * m + j] = e;
    }
}
#endif
"""


def pick_schedules(kernel: Kernel, level: str) -> tuple[Schedule, ...]:
    """The schedules that a level may use, best first: its own, then those of lower levels from the nearest
    down, then `*`. The first whose conditions hold is used. A kernel without schedules gets one without
    sizes."""
    if not kernel.schedules:
        return (Schedule("*", ()),)
    at = LEVELS.index(level)
    order = [*reversed(LEVELS[: at + 1]), "*"]
    out = [s for target in order for s in kernel.schedules if s.target == target]
    if not out:
        known = ", ".join(sorted({s.target for s in kernel.schedules}))
        raise UnsupportedError(
            f"no schedule for {level}; there are schedules for {known}",
            f"kernel {kernel.name}",
            "add one for `*`",
        )
    always = next((n for n, s in enumerate(out) if not s.when), None)
    if always is None:
        message = f"every schedule for {level} has a condition, so that possibly none applies"
        raise UnsupportedError(message, f"kernel {kernel.name}", "add one without `when`")
    return tuple(out[: always + 1])


def render_kernel(kernel: Kernel, target: Target, called: CallSizes | None = None) -> str:
    """The kernel as C++ text, without the prelude. `called`: the only values of some symbols that it will be
    called with."""
    kernel, called = expand_encodings(kernel), called or {}
    schedules = used(pick_schedules(kernel, target.name), called)
    name, params = c_function(kernel.name), "void* const* P, const int64_t* D, int64_t tid, int64_t nt"
    parts = [
        _Function(kernel, s, target, schedules[:n], called).render(f"{name}_s{n}")
        for n, s in enumerate(schedules)
    ]
    chain = [_symbols(kernel)]
    for n, s in enumerate(schedules[:-1]):
        test = " && ".join(f"S_{c.symbol} {c.op} {c.value}" for c in s.when)
        chain.append(f"  if ({test}) return {name}_s{n}(P, D, tid, nt);")
    chain.append(f"  return {name}_s{len(schedules) - 1}(P, D, tid, nt);")
    text = "\n".join([*parts, f"static void {name}({params}) {{", *chain, "}", ""])
    declared = DECLARED if "tw_ahead" in text else ""
    return declared + (_HELPERS if "tw_bits(" in text or "tw_gather<" in text else "") + text


def _symbols(kernel: Kernel) -> str:
    lines = [f"  [[maybe_unused]] const int64_t S_{s} = D[{n}];" for n, s in enumerate(kernel.symbols)]
    return "\n".join(lines or ["  (void)D;"])


@dataclass
class _Function:
    """One schedule of a kernel as a function. `before`: the schedules that precede it, whose conditions did
    not hold."""

    kernel: Kernel
    schedule: Schedule
    target: Target
    before: tuple[Schedule, ...] = ()
    called: CallSizes = field(default_factory=dict)
    instances: dict[tuple[tuple[str, int], ...], tuple[Staged, list[Item]]] = field(default_factory=dict)

    def render(self, name: str) -> str:
        self.ctx = Context(
            self.target,
            RULES,
            self.kernel,
            self.schedule,
            ranges=scalar_ranges(self.kernel),
            written=frozenset(self.kernel.written()),
        )
        ctx = self.ctx
        for s in self.kernel.symbols:
            ctx.vars[s] = Affine.of(f"S_{s}")
        for b in self.kernel.params:
            ctx.pointers[b.name] = f"p_{b.name}"
        sizes = dict(self.schedule.sizes)
        staged, _ = self.instance(sizes)
        for b in staged.kernel.locals:
            declare(ctx, b)
        axes = self.order()
        if axes:
            self.nest(axes, sizes)
        else:
            ctx.emit("if (tid) return;")
            self.leaf(sizes)
        params = [
            f"  [[maybe_unused]] char* const p_{b.name} = (char*)P[{n}];"
            for n, b in enumerate(self.kernel.params)
        ]
        body = [f"  {x}" for x in (*ctx.heads, *ctx.scopes[0].lines)]
        head = (
            f"static void {name}(void* const* P, const int64_t* D, [[maybe_unused]] int64_t tid, "
            f"[[maybe_unused]] int64_t nt) {{"
        )
        return "\n".join([head, *params, _symbols(self.kernel), *body, "}"])

    # -------------------------------------------------------------- instances
    def instance(self, sizes: Sizes) -> tuple[Staged, list[Item]]:
        """The kernel at these sizes, with staged values, as nodes."""
        key = tuple(sorted(sizes.items()))
        if key not in self.instances:
            staged = stage(bind(self.kernel, sizes), self.schedule, self.shape_of_dot)
            self.instances[key] = (staged, build(staged.kernel))
        return self.instances[key]

    def shape_of_dot(self, acc: str, a: str, b: str, a_max: int, b_max: int) -> tuple[int, int] | None:
        """(lanes, grain) of the instruction that a dot becomes, for the layout of a staged operand."""
        entry = self.target.dot(acc, a, b, a_max, b_max)
        if entry is None and a in ("bf16", "f16"):
            entry = self.target.dot(acc, "f32", "f32")
        return (self.target.lanes(acc), entry.grain) if entry else None

    def leaf(self, sizes: Sizes) -> None:
        block(self.ctx, self.instance(sizes)[1])

    # -------------------------------------------------------------- grid
    def order(self) -> list[GridAxis]:
        named = {a.var: a for a in self.kernel.grid}
        unknown = [n for n in (*self.schedule.order, *self.threads()) if n not in named]
        if unknown:
            raise UnsupportedError(
                f"schedule names axis {unknown[0]!r}; the grid has {', '.join(named)}",
                f"kernel {self.kernel.name}",
            )
        names = list(dict.fromkeys([*self.schedule.order, *named]))
        return [named[n] for n in names]

    def threads(self) -> list[str]:
        return self.schedule.threads.replace(",", " ").split()

    def nest(self, axes: list[GridAxis], sizes: Sizes) -> None:
        """The grid loops from the outermost inwards; the first thread axis, with those flattened into it, is
        divided among threads."""
        if not axes:
            return self.leaf(sizes)
        shared = self.threads() or [self.order()[0].var]
        if axes[0].var not in shared:
            self.loop(axes[:1], axes[1:], sizes, False)
        else:
            together = [a for a in axes if a.var in shared]
            if together != axes[: len(together)]:
                raise UnsupportedError(
                    f"thread axes {', '.join(shared)} are not next to each other in the loop order",
                    f"kernel {self.kernel.name}",
                )
            self.loop(together, axes[len(together) :], sizes, True)

    def loop(self, axes: list[GridAxis], rest: list[GridAxis], sizes: Sizes, shared: bool) -> None:
        """One loop over the blocks of these axes."""
        ctx = self.ctx
        counts = [self.count(a, sizes) for a in axes]
        total = " * ".join(f"({c})" for c in counts) if len(counts) > 1 else counts[0]
        n = ctx.let(ctx.here, "int64_t", total)
        t = f"b_{axes[0].var}" if len(axes) == 1 else ctx.fresh("b")
        lo, hi = (f"{n} * tid / nt", f"{n} * (tid + 1) / nt") if shared else ("0", n)
        end = ctx.let(ctx.here, "int64_t", hi) if shared else n
        with ctx.scope(f"for (int64_t {t} = {lo}; {t} < {end}; ++{t})"):
            if len(axes) > 1:
                for k, a in enumerate(axes):
                    inner = " * ".join(f"({c})" for c in counts[k + 1 :])
                    text = f"{t} / ({inner})" if inner else t
                    ctx.emit(f"const int64_t b_{a.var} = {text}" + (f" % ({counts[k]});" if k else ";"))
            self.enter(axes, rest, sizes)

    def count(self, axis: GridAxis, sizes: Sizes) -> str:
        extent, step = self.ctx.text(self.extent(axis, sizes)), self.step(axis, sizes)
        return extent if step == 1 else f"(({extent}) + {step - 1}) / {step}"

    def extent(self, axis: GridAxis, sizes: Sizes) -> Affine:
        return axis.extent.bind(sizes).bind(self.ctx.vars)

    def step(self, axis: GridAxis, sizes: Sizes) -> int:
        step = sizes.get(axis.step, axis.step) if isinstance(axis.step, str) else axis.step
        if not isinstance(step, int):
            raise UnsupportedError(
                f"grid axis {axis.var}: size {step} is not bound by any schedule",
                f"kernel {self.kernel.name}",
            )
        return step

    def enter(self, axes: list[GridAxis], rest: list[GridAxis], sizes: Sizes) -> None:
        """The inside of a grid loop: the axes' variables, staged copies, then the inner loops."""
        if not axes:
            return self.nest(rest, sizes)
        axis = axes[0]

        def inside(sizes: Sizes) -> None:
            self.ctx.roots[axis.var] = self.ctx.here
            self.copies(axis.var, sizes)
            self.enter(axes[1:], rest, sizes)

        if axis.rows:
            self.rows(axis, sizes, inside)
        else:
            self.tiles(axis, sizes, inside)

    def rows(self, axis: GridAxis, sizes: Sizes, inside: Callable[[Sizes], None]) -> None:
        """Balanced blocks, whose heights differ by at most one; the body is rendered once for every height
        that can occur, without masks."""
        ctx, most = self.ctx, self.step(axis, sizes)
        if not isinstance(axis.step, str):
            raise UnsupportedError(
                f"grid rows {axis.var}: its size must be a schedule parameter", f"kernel {self.kernel.name}"
            )
        extent, v, b = self.extent(axis, sizes), f"r_{axis.var}", f"b_{axis.var}"
        total, blocks = ctx.text(extent), self.count(axis, sizes)
        ctx.emit(
            f"const int64_t {v} = {b} * ({total}) / ({blocks}), h_{axis.var} = ({b} + 1) * ({total}) / "
            f"({blocks}) - {v};"
        )
        ctx.names[v] = ctx.here
        found = block_heights(extent, axis.extent, self.schedule, self.before, most, self.called)
        for height in sorted(found, reverse=True):
            with ctx.scope(f"if (h_{axis.var} == {height})"):
                ctx.vars[axis.var] = Affine.of(v)
                ctx.bounds[v], ctx.height = Bound(extent - height), height
                inside({**sizes, axis.step: height})

    def tiles(self, axis: GridAxis, sizes: Sizes, inside: Callable[[Sizes], None]) -> None:
        """Whole tiles. A smaller last tile is rendered at its own size if that is known and the size is a
        schedule parameter, else with masks."""
        ctx, step, extent = self.ctx, self.step(axis, sizes), self.extent(axis, sizes)
        b, v = f"b_{axis.var}", axis.var
        ctx.names[b] = ctx.here

        def whole() -> None:
            ctx.vars[v] = Affine(((b, step),))
            ctx.bounds[b] = Bound(extent - step, step)
            if extent.is_const:
                ctx.extents[b] = max(int(extent.const) // step, 1)
            inside(sizes)

        if step == 1 or extent.is_const and extent.const % step == 0:
            ctx.roots[v] = ctx.here
            return whole()
        inside_all = ctx.let(ctx.here, "bool", f"({b} + 1) * {step} <= {ctx.text(extent)}")
        if not extent.is_const or extent.const >= step:
            with ctx.scope(f"if ({inside_all})"):
                whole()
        with ctx.scope(
            f"if (!{inside_all})"
        ):  # no `else`: text hoisted out of this scope is emitted between the two
            if extent.is_const:
                full, rem = divmod(int(extent.const), step)
                ctx.vars[v], ctx.left[v] = Affine((), full * step), rem
                # a column tail is re-instantiated at whole panels
                fits = min(step, -(-rem // PANEL) * PANEL)
                inside({**sizes, axis.step: fits} if isinstance(axis.step, str) else sizes)
            else:
                ctx.vars[v] = Affine(((b, step),))
                ctx.bounds[b] = Bound(extent - 1, step)
                ctx.left[v] = ctx.let(ctx.here, "int64_t", ctx.text(extent - ctx.vars[v]))
                inside(sizes)

    def copies(self, var: str, sizes: Sizes) -> None:
        staged, _ = self.instance(sizes)
        for axis, kernel in staged.copies:
            if axis == var:
                block(self.ctx, build(kernel))
