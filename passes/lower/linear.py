"""The contraction template: y = finish(x @ w^T), for every pair of activation and weight form.

One builder serves one row and five hundred: rows are the tile height, which schedules and the run-time row count pick; each
output is summed in the same order whatever the schedule. Three forms: float dot, decode then float dot, integer dot with
group correction (scales applied after each group's dot: MixPE; zero point as the accumulator's first value).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.ir.affine import Affine
from tilewright.ir.encodings.dense import Dense
from tilewright.ir.encodings.integer import IntToken, IntWeight
from tilewright.ir.tile import Buffer, Condition, Schedule
from tilewright.ir.tilebuild import KernelBuilder, Tile
from tilewright.passes.lower.views import CannotEmit

#: accumulators of the column tile that starts at a column offset: `acc(offset) -> Tile[BM, BN]`
Accumulators = Callable[[int], Tile]


def accumulate(b: KernelBuilder, x: Buffer, w: Buffer, i: Affine, j: Affine, offsets: Sequence[int], k: int) -> dict[int, Tile]:
    """f32 tiles [BM, BN] of x[i:BM, :] @ w[j + offset : BN, :]^T, one per column offset."""
    if isinstance(x.encoding, IntToken):
        if not isinstance(w.encoding, IntWeight):
            raise CannotEmit(f"int8 activations need integer weights, got {w.encoding}")
        return _grouped(b, x, w, i, j, offsets, k) if w.encoding.group else _whole(b, x, w, i, j, offsets, k)
    return _float(b, x, w, i, j, offsets, k)


def _name(base: str, n: int) -> str:
    return base if n == 0 else f"{base}{n}"


def _float(b: KernelBuilder, x: Buffer, w: Buffer, i: Affine, j: Affine, offsets: Sequence[int], k: int) -> dict[int, Tile]:
    zeros = [b.const(0, "f32", ("BM", "BN")) for _ in offsets]
    with b.loop("k", 0, k, "BK", zeros) as loop:
        xs = b.load(x, slice(i, "BM"), slice(loop.var, "BK"))
        out = []
        for n, off in enumerate(offsets):
            at = (slice(j + off, "BN"), slice(loop.var, "BK"))
            dtype, left = "f32", xs
            if isinstance(w.encoding, Dense):
                tile = b.load(f"{w.name}.values", *at)
                dtype = tile.dtype if tile.dtype == xs.dtype else "f32"
            else:
                assert w.encoding is not None
                tile = w.encoding.tile_decode(b, w, at)
                dtype = xs.dtype if xs.dtype == "bf16" else "f32"
            left = b.cast(dtype, xs)
            tile = b.cast(dtype, tile).named(_name("w", n)) if tile.dtype != dtype else tile.named(_name("w", n))
            out.append(b.dot(loop.carried[n], left, tile))
        loop.yield_(*out)
    return dict(zip(offsets, loop.results, strict=True))


def _grouped(b: KernelBuilder, x: Buffer, w: Buffer, i: Affine, j: Affine, offsets: Sequence[int], k: int) -> dict[int, Tile]:
    encoding = w.encoding
    assert isinstance(encoding, IntWeight) and isinstance(x.encoding, IntToken)
    group = encoding.group
    _check_sums(x.encoding, encoding)
    with b.loop("g", 0, k, group, [b.const(0, "f32", ("BM", "BN")) for _ in offsets]) as loop:
        g = loop.var
        codes = b.load(f"{x.name}.codes", slice(i, "BM"), slice(g, group))
        sums = b.load(f"{x.name}.sums", slice(i, "BM"), slice(g, 1))
        out = []
        for n, off in enumerate(offsets):
            rows = slice(j + off, "BN")
            tile = b.load(f"{w.name}.codes", rows, slice(g, group)).named(_name("w", n))
            scale = b.load(f"{w.name}.scale", rows, slice(g, 1))
            scale = b.cast("f32", b.transpose(scale)).named(_name("s", n)) if scale.dtype != "f32" else b.transpose(scale).named(_name("s", n))
            part = b.cast("f32", b.dot(sums, codes, tile))
            out.append(b.op("fma", part, scale, loop.carried[n]))
        loop.yield_(*out)
    scale = b.load(f"{x.name}.scale", slice(i, "BM"), slice(0, 1))
    return {off: r * scale for off, r in zip(offsets, loop.results, strict=True)}


def _whole(b: KernelBuilder, x: Buffer, w: Buffer, i: Affine, j: Affine, offsets: Sequence[int], k: int) -> dict[int, Tile]:
    assert isinstance(w.encoding, IntWeight) and isinstance(x.encoding, IntToken)
    _check_sums(x.encoding, w.encoding)
    sums = b.load(f"{x.name}.sums", slice(i, "BM"), slice(0, 1))
    start = sums + b.const(0, "i32", ("BM", "BN"))
    with b.loop("k", 0, k, "BK", [start for _ in offsets]) as loop:
        codes = b.load(f"{x.name}.codes", slice(i, "BM"), slice(loop.var, "BK"))
        out = []
        for n, off in enumerate(offsets):
            tile = b.load(f"{w.name}.codes", slice(j + off, "BN"), slice(loop.var, "BK")).named(_name("w", n))
            out.append(b.dot(loop.carried[n], codes, tile))
        loop.yield_(*out)
    scale = b.load(f"{x.name}.scale", slice(i, "BM"), slice(0, 1))
    done: dict[int, Tile] = {}
    for off, r in zip(offsets, loop.results, strict=True):
        row = b.transpose(b.load(f"{w.name}.scale", slice(j + off, "BN"), slice(0, 1)))
        done[off] = b.cast("f32", r) * b.cast("f32", row) * scale
    return done


def _check_sums(x: IntToken, w: IntWeight) -> None:
    if (x.group, x.zero) != w.sums():
        raise CannotEmit(f"activations carry sums={x.group}, zero={x.zero}; weights {w} need sums={w.sums()[0]}, zero={w.sums()[1]}")


# ------------------------------------------------------------------ schedules
def schedules(x: Buffer, w: Buffer, parts: int, k: int) -> tuple[Schedule, ...]:
    """Sizes and places for one kernel: the register rule is at most 24 accumulators of 32 (f32 carries included)."""
    if isinstance(x.encoding, IntToken):
        assert isinstance(w.encoding, IntWeight)
        return _integer_schedules(w.encoding, parts, k)
    return _float_schedules(x, w, parts, k)


def _one(target: str, when: int, sizes: dict[str, int], stages: Sequence[tuple[str, str]] = (), prefetch: Sequence[tuple[str, int]] = ()) -> Schedule:
    cond = (Condition("M", "<=", when),) if when else ()
    return Schedule(target, tuple(sorted(sizes.items())), cond, ("j", "i"), "j", tuple(stages), tuple(prefetch))


def _staged(names: str, parts: int) -> list[tuple[str, str]]:
    return [(_name(n, p), "j") for n in names for p in range(parts)]


def _integer_schedules(w: IntWeight, parts: int, k: int) -> tuple[Schedule, ...]:
    wide = {} if w.group else {"BK": _divisor(k, 64)}
    loop = "g" if w.group else "k"
    ahead = [(loop, max(1, 384 // (w.group or wide["BK"])))]
    stage = _staged("ws", parts) if w.group else _staged("w", parts)
    small, rows, cols = max(2, 8 // parts), 6, max(16, 32 // parts)
    out: list[Schedule] = []
    for level in ("avx512_bf16", "avx512_vnni", "avx512"):
        out.append(_one(level, 16, {"BM": small, "BN": 16, **wide}, (), ahead))
        out.append(_one(level, 0, {"BM": rows, "BN": cols, **wide}, stage if w.bits < 8 else (), ()))
    out.append(_one("avx2", 4, {"BM": max(1, 4 // parts), "BN": 16, **wide}, (), ahead))
    out.append(_one("avx2", 0, {"BM": max(1, 3 // parts), "BN": 16, **wide}, stage if w.bits < 8 else (), ()))
    out.append(_one("*", 0, {"BM": 2, "BN": 16, **wide}))
    return tuple(out)


def _float_schedules(x: Buffer, w: Buffer, parts: int, k: int) -> tuple[Schedule, ...]:
    decode = not isinstance(w.encoding, Dense) or w.encoding.dtype != x.dtype
    stage = _staged("w", parts) if decode else []
    bk = _divisor(k, 8)
    small, cols = max(2, 8 // parts), max(16, 64 // parts)
    out: list[Schedule] = []
    for level in ("avx512_bf16", "avx512_vnni", "avx512"):
        out.append(_one(level, 16 if decode else 8, {"BM": small, "BN": 16, "BK": _divisor(k, 32)}, (), [("k", 12)]))
        out.append(_one(level, 0, {"BM": 6, "BN": cols, "BK": bk}, stage, ()))
    out.append(_one("avx2", 0, {"BM": max(1, 4 // parts), "BN": 16, "BK": bk}, stage, ()))
    out.append(_one("*", 0, {"BM": 2, "BN": 16, "BK": bk}))
    return tuple(out)


def _divisor(k: int, most: int) -> int:
    """The largest power of two up to `most` that divides k (at least 4; a partial last step covers the rest)."""
    size = most
    while size > 4 and k % size:
        size //= 2
    return size
