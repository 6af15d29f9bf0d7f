"""The state of rendering: scopes that text is emitted to, memoised requests, and proofs about indices.

A request is (node, position, lane map); the answer is the name of one C++ register. The answer is stored in
the outermost open scope in which it stays valid, which is also where its text is emitted: there is no other
hoisting. A lane map is ((axis | None, size), ...) outer to inner; None repeats elements. Operations are rules
in a table; none is named here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction

from tilewright.backends.cpp.nodes import Node
from tilewright.backends.cpp.target import BYTES, CTYPE, Target
from tilewright.ir.affine import Affine
from tilewright.ir.tile.core import Kernel, Schedule

Lanes = tuple[tuple[int | None, int], ...]
Pos = tuple[int, ...]
Rule = Callable[["Context", Node, Pos, Lanes, int], str]


def lane_count(lanes: Lanes) -> int:
    return math.prod(n for _, n in lanes)


def is_splat(lanes: Lanes) -> bool:
    return all(axis is None for axis, _ in lanes)


def ctype(dtype: str, lanes: int) -> str:
    return ("bool" if dtype == "bool" else CTYPE[dtype]) if lanes == 1 else f"{dtype}x{lanes}"


def power_of_two(n: int) -> int:
    """The largest power of two that divides n."""
    return n & -n


#: pointers in an expression: to a parameter (whose name is captured), or to a local
_POINTER = re.compile(r"\bp_(\w+)|\bl_\w+|\b[apt]\d+\b")


@dataclass
class Scope:
    lines: list[str] = field(default_factory=list)
    memo: dict[object, str] = field(default_factory=dict)


@dataclass
class Bound:
    """`scale * name` is at most `top` (an affine in names bound outside it), the name at least `low` (None:
    unknown)."""

    top: Affine
    scale: int = 1
    low: int | None = 0


@dataclass
class Context:
    """The state of rendering one function."""

    target: Target
    rules: Mapping[str, Rule]
    kernel: Kernel
    schedule: Schedule
    scopes: list[Scope] = field(default_factory=lambda: [Scope()])
    roots: dict[str, int] = field(default_factory=dict)  # root -> depth of the scope it changes in
    names: dict[str, int] = field(default_factory=dict)  # C++ name -> depth
    vars: dict[str, Affine] = field(default_factory=dict)  # IR name -> affine in C++ names
    bounds: dict[str, Bound] = field(default_factory=dict)  # C++ name -> its known bounds
    extents: dict[str, int] = field(default_factory=dict)  # C++ name -> largest value + 1
    ranges: Mapping[str, tuple[int | None, int | None]] = field(
        default_factory=dict
    )  # of rank-0 tiles, by name
    left: dict[str, str | int] = field(default_factory=dict)  # loop variable in its tail -> elements left
    pointers: dict[str, str] = field(default_factory=dict)  # buffer -> C++ pointer
    places: dict[tuple[object, ...], object] = field(default_factory=dict)
    heads: list[str] = field(default_factory=list)
    stack: int = 0  # bytes of locals so far
    written: frozenset[str] = frozenset()  # parameters that the kernel stores to
    counter: list[int] = field(default_factory=lambda: [0])
    natural_: dict[Node, int] = field(default_factory=dict)
    promoted: dict[Node, Node] = field(default_factory=dict)  # dots on widened operands
    widened: dict[Node, tuple[Node, Node]] = field(default_factory=dict)
    copies: dict[tuple[str, str], Node] = field(
        default_factory=dict
    )  # locals that hold computed left operands
    height: int = 0  # rows of the block being rendered; 0: there is no row axis
    dots: tuple[Node, ...] = ()  # all dots that the loop being rendered needs
    ahead: list[str] = field(default_factory=list)  # prefetches that are still to be emitted in its body
    planned: int = 0  # how many there were at first
    fetched: set[int] = field(
        default_factory=set
    )  # loops whose lines are fetched before an earlier loop begins
    handed: dict[int, list[tuple[str, Affine]]] = field(
        default_factory=dict
    )  # by inner loop: the prefetches that an outer loop passes to it
    tested: list[frozenset[str]] = field(default_factory=list)  # what each load so far was tested for
    assumed: frozenset[str] = frozenset()  # tests that hold in scopes deeper than `assumed_at`
    assumed_at: int = 0
    splits: bool = True  # whether loops are divided into where such tests hold and where they do not

    # -------------------------------------------------------------- text
    def fresh(self, prefix: str = "v") -> str:
        self.counter[0] += 1
        return f"{prefix}{self.counter[0]}"

    @property
    def here(self) -> int:
        return len(self.scopes) - 1

    def emit(self, text: str, depth: int | None = None) -> None:
        self.scopes[self.here if depth is None else depth].lines.append(text)

    def let(self, depth: int, ctype_: str, expr: str) -> str:
        """A C++ name for an expression; an expression already named in an open scope is not computed again,
        unless memory may have changed."""
        key = ("let", ctype_, expr)
        constant = not any(m[1] is None or m[1] in self.written for m in _POINTER.finditer(expr))
        if constant:
            for scope in self.scopes[: depth + 1]:
                if key in scope.memo:
                    return scope.memo[key]
        n = self.fresh()
        self.emit(f"const {ctype_} {n} = {expr};", depth)
        if constant:
            self.scopes[depth].memo[key] = n
        return n

    @contextmanager
    def at_depth(self, depth: int) -> Iterator[None]:
        """Emit as if only the scopes down to `depth` were open."""
        inner, self.scopes = self.scopes[depth + 1 :], self.scopes[: depth + 1]
        yield
        self.scopes += inner

    @contextmanager
    def scope(self, head: str) -> Iterator[Scope]:
        """A scope whose text is emitted at the current place as `head { … }` when it closes. Bounds and names
        defined inside end with it."""
        saved = (dict(self.bounds), dict(self.extents), dict(self.left), dict(self.vars))
        inner = Scope()
        self.scopes.append(inner)
        yield inner
        self.scopes.pop()
        self.emit(f"{head} {{")
        self.scopes[-1].lines += [f"  {x}" for x in inner.lines]
        self.emit("}")
        self.bounds, self.extents, self.left, self.vars = saved
        for root, d in list(self.roots.items()):
            if root.startswith("buffer:") and d > self.here:
                self.roots[root] = self.here

    # -------------------------------------------------------------- requests
    def depth(self, node: Node) -> int:
        """The depth of the innermost scope in which something that the node depends on changes."""
        return min(max((self.roots.get(r, 0) for r in node.roots), default=0), self.here)

    def memo(self, node: Node, key: object, make: Callable[[int], str]) -> str:
        d = self.depth(node)
        table = self.scopes[d].memo
        if (node, key) not in table:
            table[node, key] = make(d)
        return table[node, key]

    def get(self, node: Node, pos: Pos, lanes: Lanes) -> str:
        """The register that holds `node` at `pos` in this lane map."""
        constant = node.op == "const"
        lanes = tuple(
            (None if a is not None and (constant or node.shape[a] == 1) else a, n) for a, n in lanes if n > 1
        )
        pos = () if constant else pos
        if lanes and is_splat(lanes):
            n = lane_count(lanes)
            return self.memo(node, ("splat", pos, n), lambda d: self._splat(node, pos, n, d))
        return self.memo(node, (pos, lanes), lambda d: self.rules[node.op](self, node, pos, lanes, d))

    def _splat(self, node: Node, pos: Pos, n: int, d: int) -> str:
        x = self.get(node, pos, ())
        if node.dtype == "bool":
            w = mask_width(node)
            return self.let(d, f"i{8 * w}x{n}", f"tw_splat<i{8 * w}x{n}>({x} ? -1 : 0)")
        return self.let(d, ctype(node.dtype, n), f"tw_splat<{ctype(node.dtype, n)}>({x})")

    def arg(self, shape: tuple[int, ...], a: Node, pos: Pos, lanes: Lanes) -> str:
        """The register of operand `a` for a node of this shape, under NumPy broadcasting."""
        skip = len(shape) - len(a.shape)

        def wide(axis: int) -> bool:
            return axis >= skip and not (a.shape[axis - skip] == 1 and shape[axis] > 1)

        inner = tuple(p if wide(k) else 0 for k, p in enumerate(pos) if k >= skip)
        return self.get(
            a, inner, tuple((k - skip if k is not None and wide(k) else None, n) for k, n in lanes)
        )

    def natural(self, node: Node) -> int:
        """Lanes per register, determined by the widest type in the tree of elementwise operations that ends
        in the node."""
        if node not in self.natural_:
            width = BYTES[node.dtype] if node.dtype != "bool" else 1
            own = self.target.bytes // (width if node.op != "lookup" else max(width, 1))
            deep = node.op not in (
                "load",
                "carry",
                "dot",
                "bit_dot",
                "reduce",
                "const",
                "scan",
                "iota",
                "index",
                "lookup",
            )
            inner = [self.natural(a) for a in node.args if a.op != "const" and a.shape] if deep else []
            self.natural_[node] = min([own, *inner])
        return self.natural_[node]

    def held(self, node: Node) -> Lanes:
        """The lane map in which a node is best kept: the last axis that is wider than one element."""
        for axis in reversed(range(len(node.shape))):
            if node.shape[axis] > 1:
                n = min(power_of_two(node.shape[axis]), self.natural(node))
                return ((axis, n),) if n > 1 and n * BYTES[node.dtype] >= 4 else ()
        return ()

    # -------------------------------------------------------------- indices
    def resolve(self, a: Affine, scalars: Mapping[str, Node]) -> Affine:
        """An affine of the IR in C++ names."""
        out = a.bind(self.vars)
        values = {n: self._value(scalars[n[1:]]) for n in out.names if n.startswith("%")}
        return out.bind(values) if values else out

    def _value(self, node: Node) -> int | str:
        return int(str(node.attrs["value"])) if node.op == "const" else self.scalar(node)

    def scalar(self, node: Node) -> str:
        """A rank-0 integer as an int64 name with its bounds."""

        def make(d: int) -> str:
            x = self.get(node, (0,) * len(node.shape), ())
            n = self.let(d, "int64_t", x)
            self.names[n] = d
            return n

        n = self.memo(node, "index", make)
        low, high = self.ranges.get(node.name, (None, None))
        src = node.buffer
        if src is not None and not node.stream:
            low, high = src.lo if src.lo is not None else low, src.hi if src.hi is not None else high
        if high is not None:
            self.bounds[n] = Bound(Affine((), high), 1, low)
        return n

    def name_depth(self, a: Affine) -> int:
        return max((self.names.get(n, 0) for n in a.names), default=0)

    def text(self, a: Affine, unit: int = 1) -> str:
        """The affine divided by `unit` as C++."""
        parts = []
        for n, c in a.terms:
            q, r = divmod(c, unit)
            if r:
                raise ValueError(f"{a} is not a whole multiple of {unit}")
            parts.append(n if q == 1 else f"{q} * {n}")
        const = int(a.const) // unit
        if const or not parts:
            parts.append(str(const))
        return " + ".join(parts).replace("+ -", "- ")

    def never_negative(self, a: Affine) -> bool:
        """Whether the bounds of the names prove a >= 0, symbolically or with their numeric bounds."""
        highest = self.highest(-a)
        return highest is not None and highest <= 0 or self._symbolically(a)

    def _symbolically(self, a: Affine) -> bool:
        for _ in range(64):
            held = set(a.names)
            name = next((n for n in reversed(self.bounds) if n in held), None)
            if name is None:
                break
            b, c = self.bounds[name], a.coefficient(name)
            if c > 0 and b.low is None:
                return False
            a = a - Affine(((name, c),)) + (b.top / b.scale * c if c < 0 else Affine.of(b.low or 0) * c)
        return all(c >= 0 and n.startswith("S_") for n, c in a.terms) and a.const >= 0

    def highest(self, a: Affine) -> int | None:
        """The largest value an affine can take, if that is a known number."""
        total: int | Fraction = a.const
        for name, c in a.terms:
            b = self.bounds.get(name)
            if c < 0:
                low = b.low if b is not None else 0 if name.startswith("S_") else None
                if low is None:
                    return None
                total += c * low
                continue
            top = self.highest(b.top) if b is not None else None
            if b is None or top is None:
                return None
            total += c * (top // b.scale)
        return math.floor(total)


def mask_width(node: Node) -> int:
    """Bytes of a lane of the mask that a bool node gives as a vector: those of the operands compared."""
    if node.op in ("lt", "le", "eq", "ne", "cast") and node.args[0].dtype != "bool":
        widened = node.op != "cast" and node.args[0].dtype in ("bf16", "f16")  # compared as f32
        return BYTES["f32" if widened else node.args[0].dtype]
    for a in node.args:
        if a.dtype == "bool" and node.op != "load":
            return mask_width(a)
    return 1
