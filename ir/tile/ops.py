"""All operations of Tile IR, `TILE_OPS`; here are those that are not elementwise (`tile.scalar_ops`).

Each has a record with arity, type inference and NumPy semantics: reductions, dots, changes of shape and
dtype, constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tilewright.ir.numbers import HELD, bf16_bits, bits_to_bf16, hold, int_range
from tilewright.ir.tile.core import Size, TileType
from tilewright.ir.tile.op_record import Array, Attrs, TileOp, TileTypeError, broadcast
from tilewright.ir.tile.scalar_ops import ELEMENTWISE, wrap


def _axis(t: TileType, attrs: Attrs, name: str, extra: int = 0) -> int:
    axis = attrs["axis"]
    if not isinstance(axis, int) or not 0 <= axis < len(t.shape) + extra:
        raise TileTypeError(f"{name}: axis {axis} is outside rank {len(t.shape)}")
    return axis


def _at(shape: Sequence[Size], axis: int, size: Size) -> tuple[Size, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _infer_reduce(types: Sequence[TileType], attrs: Attrs) -> TileType:
    if attrs["fn"] not in ("add", "max", "min"):
        raise TileTypeError(f"reduce: {attrs['fn']!r} is not add, max or min")
    return TileType(types[0].dtype, _at(types[0].shape, _axis(types[0], attrs, "reduce"), 1))


REDUCE = {"add": np.add, "max": np.maximum, "min": np.minimum}


def identity(fn: str, dtype: str) -> object:
    """The neutral element of a reduction."""
    if fn == "add":
        return 0
    if dtype[0] in "iu":
        lo, hi = int_range(dtype)
        return lo if fn == "max" else hi
    return -np.inf if fn == "max" else np.inf


def tree_reduce(x: Array, fn: str, axis: int, dtype: str) -> Array:
    """The fixed order of every reduction: pad the axis to a power of two with the neutral element, then fold
    the upper half onto the lower until one element is left. Independent of vector width, so every target
    gives the same bits."""
    n = x.shape[axis]
    full = 1 << (n - 1).bit_length()
    if full != n:
        pad = np.full((*x.shape[:axis], full - n, *x.shape[axis + 1 :]), identity(fn, dtype), x.dtype)
        x = np.concatenate([x, pad], axis)
    with np.errstate(all="ignore"):
        while full > 1:
            full //= 2
            lower, upper = np.split(x, [full], axis)
            x = wrap(REDUCE[fn](lower, upper), dtype)
    return x


def _scan_meaning(args: Sequence[Array], attrs: Attrs, t: TileType) -> Array:
    axis, fn = int(str(attrs["axis"])), str(attrs["fn"])
    parts = np.split(args[0], args[0].shape[axis], axis)
    out = [parts[0]]
    for p in parts[1:]:
        out.append(wrap(REDUCE[fn](out[-1], p), t.dtype))
    return np.concatenate(out, axis)


def _infer_scan(types: Sequence[TileType], attrs: Attrs) -> TileType:
    _axis(types[0], attrs, "scan")
    if attrs["fn"] not in REDUCE:
        raise TileTypeError(f"scan: {attrs['fn']!r} is not add, max or min")
    return types[0]


#: operand dtypes of `dot` and the accumulator each takes
DOTS = {
    ("u8", "i8"): "i32", ("i8", "u8"): "i32", ("i8", "i8"): "i32", ("u8", "u8"): "i32",
    ("bf16", "bf16"): "f32", ("f16", "f16"): "f32", ("f32", "f32"): "f32", ("f64", "f64"): "f64",
}  # fmt: skip


def _infer_dot(types: Sequence[TileType], attrs: Attrs) -> TileType:
    acc, a, b = types
    want = DOTS.get((a.dtype, b.dtype))
    if want is None or acc.dtype != want:
        raise TileTypeError(
            f"dot: no form for {a.dtype} x {b.dtype} -> {acc.dtype}; known: "
            + ", ".join(f"{x} x {y} -> {z}" for (x, y), z in DOTS.items())
        )
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[1]:
        raise TileTypeError(f"dot: needs [M, K] and [N, K], got {a.shape} and {b.shape}")
    shape = (a.shape[0], b.shape[0])
    if broadcast([acc.shape, shape]) != shape:
        raise TileTypeError(f"dot: accumulator {acc.shape} does not broadcast to {shape}")
    return TileType(want, shape)


def _dot_meaning(args: Sequence[Array], attrs: Attrs, t: TileType) -> Array:
    acc, a, b = args
    if t.dtype == "i32":
        return (acc.astype(np.int64) + a.astype(np.int64) @ b.astype(np.int64).T).astype(np.int32)
    out = np.broadcast_to(acc, (a.shape[0], b.shape[0])).astype(np.float64)
    if t.dtype == "f64":
        total: Array = out + a @ b.T
        return total
    out = out.astype(np.float32).astype(np.float64)
    for k in range(a.shape[1]):  # k ascending, one fused multiply-add each: the order of every target
        out = (
            (out + a[:, k, None].astype(np.float64) * b[None, :, k].astype(np.float64))
            .astype(np.float32)
            .astype(np.float64)
        )
    return out.astype(np.float32)


#: offsets of the four k whose bits index a table of `bit_dot`; a run of 16 elements along K has four such
#: tables
QUAD, QUADS = (0, 4, 8, 12), 16


def _infer_bit_dot(types: Sequence[TileType], attrs: Attrs) -> TileType:
    acc, a, b = types
    if (acc.dtype, a.dtype, b.dtype) != ("f32", "f32", "u8"):
        raise TileTypeError(f"bit_dot: needs f32 += f32 x u8, got {acc.dtype} += {a.dtype} x {b.dtype}")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[1]:
        raise TileTypeError(f"bit_dot: needs [M, K] and [N, K], got {a.shape} and {b.shape}")
    if isinstance(a.shape[1], int) and a.shape[1] % QUADS:
        raise TileTypeError(f"bit_dot: K must be a multiple of {QUADS}, got {a.shape[1]}")
    shape = (a.shape[0], b.shape[0])
    if broadcast([acc.shape, shape]) != shape:
        raise TileTypeError(f"bit_dot: accumulator {acc.shape} does not broadcast to {shape}")
    return TileType("f32", shape)


def _bit_dot_meaning(args: Sequence[Array], attrs: Attrs, t: TileType) -> Array:
    """Sums of four products first, in the order in which their table is built, then one addition of each to
    the accumulator."""
    acc, x, bits = args[0], args[1].astype(np.float32), (args[2] & 1).astype(np.float32)
    out = np.broadcast_to(acc, (x.shape[0], bits.shape[0])).astype(np.float32)
    with np.errstate(all="ignore"):
        for k in (r + j for r in range(0, x.shape[1], QUADS) for j in range(4)):
            p = [x[:, None, k + q] * bits[None, :, k + q] for q in QUAD]
            out = out + ((p[0] + p[1]) + (p[2] + p[3]))
    return out


def _infer_transpose(types: Sequence[TileType], attrs: Attrs) -> TileType:
    if len(types[0].shape) != 2:
        raise TileTypeError(f"transpose: needs rank 2, got {types[0].shape}")
    return TileType(types[0].dtype, types[0].shape[::-1])


def _infer_expand(types: Sequence[TileType], attrs: Attrs) -> TileType:
    axis = _axis(types[0], attrs, "expand", extra=1)
    return TileType(types[0].dtype, (*types[0].shape[:axis], 1, *types[0].shape[axis:]))


def _count(shape: Sequence[Size]) -> tuple[int, tuple[str, ...]]:
    return math.prod(s for s in shape if isinstance(s, int)), tuple(
        sorted(s for s in shape if isinstance(s, str))
    )


def _infer_reshape(types: Sequence[TileType], attrs: Attrs) -> TileType:
    shape = attrs["shape"]
    if not isinstance(shape, tuple) or _count(shape) != _count(types[0].shape):
        raise TileTypeError(f"reshape: {types[0].shape} does not hold as many elements as {shape}")
    return TileType(types[0].dtype, shape)


def _infer_lookup(types: Sequence[TileType], attrs: Attrs) -> TileType:
    if len(types[0].shape) != 1 or types[1].dtype[0] not in "iu":
        raise TileTypeError(f"lookup: needs a rank-1 table and integer codes, got {types[0]} and {types[1]}")
    return TileType(types[0].dtype, types[1].shape)


def _lookup_meaning(args: Sequence[Array], attrs: Attrs, t: TileType) -> Array:
    return args[0][np.clip(args[1].astype(np.int64), 0, len(args[0]) - 1)]


#: bytes of each dtype that a value can have
_WIDTH = {
    "f64": 8, "i64": 8, "f32": 4, "i32": 4, "u32": 4, "f16": 2, "bf16": 2, "i16": 2, "u16": 2, "i8": 1,
    "u8": 1, "bool": 1,
}  # fmt: skip


def _infer_bitcast(types: Sequence[TileType], attrs: Attrs) -> TileType:
    dtype = str(attrs["dtype"])
    if _WIDTH[dtype] != _WIDTH[types[0].dtype]:
        raise TileTypeError(f"bitcast: {types[0].dtype} and {dtype} differ in width")
    return TileType(dtype, types[0].shape)


def _bitcast_meaning(args: Sequence[Array], attrs: Attrs, t: TileType) -> Array:
    src = str(attrs["from"])
    raw = (
        bf16_bits(args[0].astype(np.float32))
        if src == "bf16"
        else args[0].astype(np.float16)
        if src == "f16"
        else args[0]
    )
    bits = np.asarray(raw, order="C")
    if t.dtype == "bf16":
        return bits_to_bf16(bits.view(np.uint16))
    return bits.view(np.float16).astype(np.float32) if t.dtype == "f16" else bits.view(HELD[t.dtype])


def _infer_const(types: Sequence[TileType], attrs: Attrs) -> TileType:
    return TileType(str(attrs["dtype"]), attrs["shape"])  # type: ignore[arg-type]


def _full(value: object, t: TileType) -> Array:
    """A constant held in its dtype: narrow floats are rounded."""
    shape = tuple(int(n) for n in t.shape)
    if t.dtype in ("bf16", "f16"):
        return hold(np.full(shape, value, np.float64), t.dtype)
    return np.full(shape, value, HELD[t.dtype])


def _infer_iota(types: Sequence[TileType], attrs: Attrs) -> TileType:
    return TileType("i32", (attrs["size"],))  # type: ignore[arg-type]


def _same(types: Sequence[TileType], attrs: Attrs) -> TileType:
    return types[0]


def _within_meaning(args: Sequence[Array], attrs: Attrs, t: TileType) -> Array:
    raise TypeError("`within` needs its loop's extent: the interpreter gives its meaning")


_OTHER = [
    TileOp("const", 0, _infer_const, lambda a, at, t: _full(at["value"], t), ("value", "dtype", "shape")),
    TileOp("iota", 0, _infer_iota, lambda a, at, t: np.arange(t.shape[0], dtype=np.int32), ("size",)),
    TileOp("index", 0, lambda ts, at: TileType("i32", ()), _within_meaning, ("value",)),
    TileOp(
        "cast",
        1,
        lambda ts, at: TileType(str(at["dtype"]), ts[0].shape),
        lambda a, at, t: hold(a[0], t.dtype),
        ("dtype",),
    ),
    TileOp("bitcast", 1, _infer_bitcast, _bitcast_meaning, ("dtype", "from")),
    TileOp(
        "reduce",
        1,
        _infer_reduce,
        lambda a, at, t: tree_reduce(a[0], str(at["fn"]), int(str(at["axis"])), t.dtype),
        ("fn", "axis"),
    ),
    TileOp("scan", 1, _infer_scan, _scan_meaning, ("fn", "axis")),
    TileOp("dot", 3, _infer_dot, _dot_meaning),
    TileOp("bit_dot", 3, _infer_bit_dot, _bit_dot_meaning),
    TileOp("transpose", 1, _infer_transpose, lambda a, at, t: a[0].T),
    TileOp(
        "expand", 1, _infer_expand, lambda a, at, t: np.expand_dims(a[0], int(str(at["axis"]))), ("axis",)
    ),
    TileOp(
        "reshape", 1, _infer_reshape, lambda a, at, t: a[0].reshape([int(n) for n in t.shape]), ("shape",)
    ),
    TileOp("lookup", 2, _infer_lookup, _lookup_meaning),
    TileOp("within", 1, _same, _within_meaning, ("loop", "axis", "other")),
]

#: all operations of `Let`, by name (`load` is a statement of its own)
TILE_OPS: dict[str, TileOp] = {op.name: op for op in [*ELEMENTWISE, *_OTHER]}
PRIMITIVES: tuple[str, ...] = tuple(op.name for op in ELEMENTWISE)
