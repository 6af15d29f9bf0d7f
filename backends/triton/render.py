"""Renders a Tile IR kernel as Triton source: tiles become `tl` tensors, bounds and `within` become masks.

In: a kernel and the schedule that binds its sizes. Out: readable Python text. Statements are rendered one by
one, in order: Tile IR does not depend on the C++ backend. Independent of how kernels are launched.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tilewright.backends.triton.schedules import TARGET
from tilewright.backends.triton.spell import JOIN, NARROW, PRELUDE, TYPES, conversion, primitive
from tilewright.ir.affine import Affine
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout, record
from tilewright.ir.tile.builder import static_shape
from tilewright.ir.tile.core import (
    At,
    Buffer,
    For,
    Index,
    Kernel,
    Let,
    Load,
    Schedule,
    Size,
    Span,
    Stmt,
    Store,
    TileType,
    bind,
    walk,
)  # fmt: skip
from tilewright.ir.tile.expand import expand_encodings
from tilewright.ir.tile.ops import TILE_OPS
from tilewright.ir.types import BITS

#: dots smaller than this on any side are rendered as a product and a sum: tensor cores need 16
SMALLEST_DOT = 16
#: names that the source uses for other things: neither a symbol nor a variable may have them
_TAKEN = ("tl", "triton", "pid", "range", "float")


def function_name(kernel: Kernel) -> str:
    """`k_NAME`, characters that Python does not allow in a name replaced."""
    return "k_" + re.sub(r"[^A-Za-z0-9_]", "_", kernel.name)


def schedule_for(kernel: Kernel) -> Schedule:
    """The kernel's `triton` schedule. UnsupportedError names the targets that it has schedules for."""
    for s in kernel.schedules:
        if s.target == TARGET:
            return s
    have = ", ".join(dict.fromkeys(s.target for s in kernel.schedules)) or "none"
    raise UnsupportedError(
        f"no schedule for {TARGET}; it has {have}", f"kernel @{kernel.name}", "add `schedule triton { ... }`"
    )


def render_kernel(kernel: Kernel, symbols: Mapping[str, int] | None = None) -> str:
    """The module text that defines `k_NAME(pointers…, symbols…)`, launched on one axis. Packed buffers whose
    inner extents are symbols need the symbols' values: their strides become constants."""
    names = kernel.symbols
    variables = [a.var for a in kernel.grid] + [s.var for s in walk(kernel.body) if isinstance(s, For)]
    for word in (*names, *variables):
        if not word.isidentifier() or keyword.iskeyword(word) or word in _TAKEN:
            raise UnsupportedError(
                f"{word!r} is a reserved word of Python or Triton", f"kernel @{kernel.name}", "rename it"
            )
    params = tuple(_settled(b, symbols or {}) for b in kernel.params)
    bound = bind(replace(kernel, params=params), dict(schedule_for(kernel).sizes))
    return _Renderer(expand_encodings(bound), names, frozenset((*names, *variables))).module()


def _settled(b: Buffer, symbols: Mapping[str, int]) -> Buffer:
    packed = b.record is not None or b.encoding is not None
    return replace(b, dims=tuple(d.bind(symbols) for d in b.dims)) if packed else b


def grid(kernel: Kernel, symbols: dict[str, int]) -> tuple[int, ...]:
    """Instances along each grid axis; the launch takes their product."""
    sizes = dict(schedule_for(kernel).sizes)
    counts = []
    for a in kernel.grid:
        step = sizes[a.step] if isinstance(a.step, str) else a.step
        counts.append(-(-a.extent.bind({**symbols, **sizes}).as_int() // step))
    return tuple(counts) or (1,)


@dataclass
class _Renderer:
    kernel: Kernel
    symbols: tuple[str, ...]
    #: names of the program itself: symbols, grid axes, loop variables
    reserved: frozenset[str]
    lines: list[str] = field(default_factory=list)
    depth: int = 1
    types: dict[str, TileType] = field(default_factory=dict)
    loops: dict[str, str] = field(default_factory=dict)
    #: names given to coordinates and masks, per open loop
    named: list[dict[str, str]] = field(default_factory=lambda: [{}])
    count: int = 0

    def module(self) -> str:
        if self.kernel.locals:
            names = ", ".join(b.name for b in self.kernel.locals)
            raise UnsupportedError(
                f"locals ({names}) are not supported in Triton",
                f"kernel @{self.kernel.name}",
                "use loop-carried values instead",
            )
        self.axes()
        self.block(self.kernel.body)
        args = ", ".join([f"p_{b.name}" for b in self.kernel.params] + [f"{s}" for s in self.symbols])
        head = f"@triton.jit\ndef {function_name(self.kernel)}({args}):"
        return f"{PRELUDE}\n{head}\n" + "\n".join(self.lines or ["    pass"]) + "\n"

    def emit(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def axes(self) -> None:
        """One launch axis, decomposed: the last grid axis runs fastest."""
        self.emit("pid = tl.program_id(0)")
        for a in reversed(self.kernel.grid):
            step = _int(a.step)
            extent = self.affine(a.extent)
            self.emit(
                f"n_{a.var} = ({extent} + {step - 1}) // {step}" if step > 1 else f"n_{a.var} = {extent}"
            )
            self.emit(f"{a.var} = pid % n_{a.var}" + (f" * {step}" if step > 1 else ""))
            self.emit(f"pid = pid // n_{a.var}")

    # ------------------------------------------------------------ names and numbers
    def affine(self, a: Affine) -> str:
        return re.sub(r"%(\w[\w.]*)", lambda m: self.value(m[1]), str(a)).replace("/", "//")

    def value(self, name: str) -> str:
        return "v_" + re.sub(r"\W", "_", name)

    def let_name(self, prefix: str, text: str) -> str:
        """A variable for an expression that is used again or is too long to be read inside a statement; its
        name."""
        text = _bare(text)
        for known in self.named:
            if text in known:
                return known[text]
        if len(text) <= 8:
            return text
        name = ""
        while not name or name in self.reserved:
            self.count += 1
            name = f"{prefix}{self.count}"
        self.emit(f"{name} = {text}")
        self.named[-1][text] = name
        return name

    # ------------------------------------------------------------ statements
    def block(self, body: Sequence[Stmt]) -> None:
        for s in body:
            if isinstance(s, For):
                self.loop(s)
            elif isinstance(s, Store):
                self.store(s)
            else:
                self.types[s.name] = s.type
                text = _bare(self.load(s) if isinstance(s, Load) else self.let(s))
                self.emit(f"{self.value(s.name)} = {text}")

    def loop(self, s: For) -> None:
        for c in s.carries:
            self.types[c.name] = self.types[c.result] = c.type
            self.emit(f"{self.value(c.name)} = {self.full(c.init, c.type)}")
        self.loops[s.var] = self.affine(s.hi)
        self.emit(f"for {s.var} in range({self.affine(s.lo)}, {self.affine(s.hi)}, {_int(s.step)}):")
        self.depth += 1
        self.named.append({})
        self.block(s.body)
        self.named.pop()
        for n, c in enumerate(s.carries):
            self.emit(f"yield_{n} = {self.value(c.yields)}")
        for n, c in enumerate(s.carries):
            self.emit(f"{self.value(c.name)} = yield_{n}")
        if not s.body and not s.carries:
            self.emit("pass")
        self.depth -= 1
        for c in s.carries:
            self.emit(f"{self.value(c.result)} = {self.value(c.name)}")

    def full(self, name: str, t: TileType) -> str:
        """A carried value must have its full shape from the start."""
        shape = [_int(n) for n in t.shape]
        return f"tl.broadcast_to({self.value(name)}, {shape})" if shape else self.value(name)

    # ------------------------------------------------------------ values
    def let(self, s: Let) -> str:
        args = [self.value(a) for a in s.args]
        if TILE_OPS[s.op].elementwise:
            kinds = [self.types[a].dtype for a in s.args]
            if s.op != "select":
                args = [f"{a}.to(tl.float32)" if k in NARROW else a for a, k in zip(args, kinds, strict=True)]
            return self.narrow(primitive(s.op, kinds[-1], args), s.type)
        rule = getattr(self, "op_" + s.op, None)
        if rule is None:
            raise UnsupportedError(
                f"{s.op} is not supported in Triton",
                f"kernel @{self.kernel.name}",
                "write it with other operations",
            )
        return str(rule(s, args))

    def narrow(self, text: str, t: TileType) -> str:
        """Triton widens narrow operands as C does; this converts the result back to the dtype that the IR
        states."""
        return (
            f"({text}).to({TYPES[t.dtype]})" if t.dtype not in ("f32", "i32", "bool", "f64") else f"({text})"
        )

    def op_const(self, s: Let, args: list[str]) -> str:
        value = s.attr("value")
        shape = [_int(n) for n in s.type.shape]
        return f"tl.full({shape}, {_literal(value)}, {TYPES[s.type.dtype]})"

    def op_iota(self, s: Let, args: list[str]) -> str:
        return f"tl.arange(0, {_int(s.type.shape[0])})"

    def op_index(self, s: Let, args: list[str]) -> str:
        at = s.attr("value")
        assert isinstance(at, Affine)
        return f"tl.full([], 0, tl.int32) + ({self.affine(at)})"

    def op_cast(self, s: Let, args: list[str]) -> str:
        return conversion(args[0], self.types[s.args[0]].dtype, s.type.dtype)

    def op_bitcast(self, s: Let, args: list[str]) -> str:
        return f"{args[0]}.to({TYPES[s.type.dtype]}, bitcast=True)"

    def op_reduce(self, s: Let, args: list[str]) -> str:
        fn, axis, dtype = str(s.attr("fn")), s.attr("axis"), s.type.dtype
        x = f"{args[0]}.to(tl.float32)" if dtype in NARROW else args[0]
        if fn == "add":
            return self.narrow(f"tl.sum({x}, axis={axis}, keep_dims=True)", s.type)
        return self.narrow(f"tl.reduce({x}, {axis}, {JOIN[fn]}, keep_dims=True)", s.type)

    def op_scan(self, s: Let, args: list[str]) -> str:
        x = f"{args[0]}.to(tl.float32)" if s.type.dtype in NARROW else args[0]
        return self.narrow(f"tl.associative_scan({x}, {s.attr('axis')}, {JOIN[str(s.attr('fn'))]})", s.type)

    def op_dot(self, s: Let, args: list[str]) -> str:
        a, b = (self.types[x] for x in s.args[1:])
        sides = [_int(n) for n in (*a.shape, b.shape[0])]
        to = TYPES[s.type.dtype]
        if min(sides) >= SMALLEST_DOT and a.dtype == b.dtype and a.dtype in ("f32", "f16", "i8"):
            precise = ', input_precision="ieee"' if a.dtype == "f32" else ""
            return f"{args[0]} + tl.dot({args[1]}, tl.trans({args[2]}), out_dtype={to}{precise})"
        left, right = f"{args[1]}.to({to})[:, None, :]", f"{args[2]}.to({to})[None, :, :]"
        return f"{args[0]} + tl.sum({left} * {right}, axis=2)"

    def op_transpose(self, s: Let, args: list[str]) -> str:
        return f"tl.trans({args[0]})"

    def op_expand(self, s: Let, args: list[str]) -> str:
        return (
            f"tl.expand_dims({args[0]}, {s.attr('axis')})"
            if len(s.type.shape) > 1
            else f"tl.reshape({args[0]}, [1])"
        )

    def op_reshape(self, s: Let, args: list[str]) -> str:
        shape = [_int(n) for n in s.type.shape]
        return f"tl.reshape({args[0]}, {shape})" if shape else f"tl.sum({args[0]})"

    def op_lookup(self, s: Let, args: list[str]) -> str:
        shape = [_int(n) for n in s.type.shape]
        count = 1
        for n in shape:
            count *= n
        last = _int(self.types[s.args[0]].shape[0]) - 1
        inside = f"tl.minimum(tl.maximum({args[1]}.to(tl.int64), 0), {last}).to(tl.int32)"
        flat = f"tl.reshape({inside}, [{count}])"
        return f"tl.reshape(tl.gather({args[0]}, {flat}, 0), {shape})"

    def op_within(self, s: Let, args: list[str]) -> str:
        axis, loop = int(str(s.attr("axis"))), str(s.attr("loop"))
        n = _int(s.type.shape[axis])
        lane = _spread(f"({loop} + tl.arange(0, {n}))", axis, len(s.type.shape))
        other = _literal(s.attr("other"))
        return f"tl.where({lane} < {self.loops[loop]}, {args[0]}, {other}).to({TYPES[s.type.dtype]})"

    # ------------------------------------------------------------ memory
    def places(self, buffer: Buffer, index: Sequence[Index]) -> tuple[list[str], list[str]]:
        """Coordinates of every dimension, broadcast to the tile's axes, and the conditions under which they
        lie inside the buffer."""
        rank = sum(not isinstance(i, At) for i in index)
        axis, coords, inside = 0, [], []
        for i, dim in zip(index, buffer.dims, strict=True):
            if isinstance(i, At):
                text = self.affine(i.start) if str(i.start).isidentifier() else f"({self.affine(i.start)})"
            elif isinstance(i, Span):
                text = _spread(f"({self.affine(i.start)} + tl.arange(0, {_int(i.size)}))", axis, rank)
            else:
                text = _spread(self.value(i.tile), axis, rank)
            axis += not isinstance(i, At)
            text = self.let_name("x", text)
            coords.append(text)
            inside += [f"({text} >= 0)", f"({text} < {self.affine(dim)})"]
        return coords, inside

    def address(self, name: str, index: Sequence[Index]) -> tuple[str, str, str, int]:
        """Pointer, mask, dtype and bit width of a buffer or stream; for elements narrower than a byte, a bit
        offset instead of the pointer."""
        root, _, stream = name.partition(".")
        buffer = self.kernel.buffer(root)
        spec, dtype = _layout(buffer, stream)
        coords, inside = self.places(buffer, index)
        mask = self.let_name("m", " & ".join(inside) or "True")
        if spec is None:
            return (
                f"p_{root} + {_dense(coords, [self.affine(d) for d in buffer.dims])}",
                mask,
                dtype,
                BITS[dtype],
            )
        bits = self.let_name("b", _digits(spec, coords))
        if BITS[dtype] < 8:
            return bits, mask, dtype, BITS[dtype]
        return f"(p_{root} + {bits} // 8).to(tl.pointer_type({TYPES[dtype]}))", mask, dtype, BITS[dtype]

    def load(self, s: Load) -> str:
        at, mask, dtype, width = self.address(s.buffer, s.index)
        other = _literal(s.other)
        if dtype[0] in "iu":
            other = str(int(s.other))
        shape = [_int(n) for n in s.type.shape]
        mask = self.let_name("m", f"tl.full({shape}, True, tl.int1) & {mask}") if shape else mask
        if width >= 8:
            text = f"tl.load({at}, mask={mask}, other={other})"
            return f"({text} != 0)" if dtype == "bool" else text
        return self.codes(s.buffer.partition(".")[0], at, mask, width, other)

    def codes(self, root: str, bits: str, mask: str, width: int, other: str) -> str:
        """Codes narrower than a byte, from the one or two bytes that hold them."""
        low = self.let_name("lo", f"tl.load(p_{root} + {bits} // 8, mask={mask}, other=0).to(tl.int32)")
        crosses = f"{mask} & ({bits} % 8 + {width} > 8)"
        high = self.let_name(
            "hi", f"tl.load(p_{root} + {bits} // 8 + 1, mask={crosses}, other=0).to(tl.int32)"
        )
        code = f"((({low} | ({high} << 8)) >> ({bits} % 8)) & {(1 << width) - 1})"
        return f"tl.where({mask}, {code}, {other}).to(tl.uint8)"

    def store(self, s: Store) -> None:
        at, mask, dtype, width = self.address(s.buffer, s.index)
        if width < 8:
            raise UnsupportedError(f"a store of {dtype}", f"kernel @{self.kernel.name}", "store whole bytes")
        shape = [
            _int(i.size) if isinstance(i, Span) else _int(self.types[i.tile].shape[0])
            for i in s.index
            if not isinstance(i, At)
        ]
        value = self.value(s.value)
        if shape:
            value = f"tl.broadcast_to({value}, {shape})"
            mask = f"tl.full({shape}, True, tl.int1) & {mask}"
        elif self.types[s.value].shape:
            value = f"tl.sum({value})"
        self.emit(f"tl.store({at}, {value}, mask={mask})")


def _literal(value: object) -> str:
    return {"inf": "float('inf')", "-inf": "float('-inf')", "nan": "float('nan')"}.get(
        str(value), repr(value)
    )


def _bare(text: str) -> str:
    """Without parentheses around the whole."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for k, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0 and k < len(text) - 1:
            return text
    return text[1:-1]


def _int(n: Size) -> int:
    if not isinstance(n, int):
        raise UnsupportedError(
            f"size {n} is not bound by any schedule", "triton", "bind it in `schedule triton`"
        )
    return n


def _spread(text: str, axis: int, rank: int) -> str:
    if rank <= 1:
        return text
    return f"{text}[{', '.join(':' if k == axis else 'None' for k in range(rank))}]"


def _layout(buffer: Buffer, stream: str) -> tuple[Layout | None, str]:
    """The stream's layout and storage dtype; None: dense, strides from the dims."""
    spec = buffer.record or (buffer.encoding.record(static_shape(buffer)) if buffer.encoding else None)
    if spec is None:
        return None, buffer.dtype
    name = stream or spec.streams[0].name
    found = next(x for x in spec.streams if x.name == name)
    layouts = record(
        static_shape(buffer), spec.prefix, {x.name: (BITS[x.dtype], x.digits) for x in spec.streams}
    )
    return layouts[name], found.dtype


def _digits(layout: Layout, coords: Sequence[str]) -> str:
    parts = [str(layout.base)] if layout.base else []
    for d in layout.digits:
        text = coords[d.dim]
        text = f"({text} // {d.step})" if d.step != 1 else text
        text = f"({text} % {d.size})" if d.size is not None else text
        parts.append(f"{text} * {d.stride}")
    return " + ".join(parts) or "0"


def _dense(coords: Sequence[str], dims: Sequence[str]) -> str:
    text = coords[0] if coords else "0"
    for c, d in zip(coords[1:], dims[1:], strict=True):
        inner = text if text.isidentifier() else f"({text})"
        text = f"{inner} * ({d}) + {c}" if " " in d else f"{inner} * {d} + {c}"
    return text
