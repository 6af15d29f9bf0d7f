"""The contraction template: y = finish(x @ w^T), for every pair of activation and weight form.

One builder serves one row and five hundred: rows are the tile height, which schedules and the run-time row count pick; each
output is summed in the same order whatever the schedule. Three forms: float dot, decode then float dot, integer dot with
group correction (scales applied after each group's dot: MixPE; zero point as the accumulator's first value).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.ir.affine import Affine
from tilewright.ir.encodings.dense import PANEL, Dense
from tilewright.ir.encodings.integer import IntToken, IntWeight
from tilewright.ir.tile import Buffer, Condition, Schedule, Size
from tilewright.ir.tilebuild import KernelBuilder, Tile
from tilewright.passes.lower.views import CannotEmit

#: accumulators of the column tile that starts at a column offset: `acc(offset) -> Tile[BM, BN]`
Accumulators = Callable[[int], Tile]


@dataclass(frozen=True)
class Place:
    """Where one contraction tile sits: index entries of the activations' leading axes (one of them `height` long), entries before
    the weight's rows (an expert), first output column, K."""

    rows: tuple[object, ...]
    j: Affine
    k: int
    lead: tuple[object, ...] = ()
    height: Size = "BM"

    def x(self, at: object) -> tuple[object, ...]:
        return (*self.rows, at)

    def w(self, offset: int, at: object) -> tuple[object, ...]:
        return (*self.lead, slice(self.j + offset, "BN"), at)


def accumulate(b: KernelBuilder, x: Buffer, w: Buffer, place: Place, offsets: Sequence[int]) -> dict[int, Tile]:
    """f32 tiles [height, BN] of x[rows, :] @ w[j + offset : BN, :]^T, one per column offset."""
    if isinstance(x.encoding, IntToken):
        if not isinstance(w.encoding, IntWeight):
            raise CannotEmit(f"int8 activations need integer weights, got {w.encoding}")
        return _grouped(b, x, w, place, offsets) if w.encoding.group else _whole(b, x, w, place, offsets)
    return _float(b, x, w, place, offsets)


def _name(base: str, n: int) -> str:
    return base if n == 0 else f"{base}{n}"


def _float(b: KernelBuilder, x: Buffer, w: Buffer, p: Place, offsets: Sequence[int]) -> dict[int, Tile]:
    zeros = [b.const(0, "f32", (p.height, "BN")) for _ in offsets]
    with b.loop("k", 0, p.k, "BK", zeros) as loop:
        at = slice(loop.var, "BK")
        xs = b.load(x, *p.x(at))
        out = []
        for n, off in enumerate(offsets):
            dtype = "f32"
            if w.encoding is None:
                tile = b.load(w, *p.w(off, at))
            elif isinstance(w.encoding, Dense):
                tile = b.load(f"{w.name}.values", *p.w(off, at))
                dtype = tile.dtype if tile.dtype == xs.dtype else "f32"
            else:
                tile = w.encoding.tile_decode(b, w, p.w(off, at))
                dtype = xs.dtype if xs.dtype == "bf16" else "f32"
            tile = (b.cast(dtype, tile) if tile.dtype != dtype else tile).named(_name("w", n))
            out.append(b.dot(loop.carried[n], b.cast(dtype, xs), tile))
        loop.yield_(*out)
    return dict(zip(offsets, loop.results, strict=True))


def _grouped(b: KernelBuilder, x: Buffer, w: Buffer, p: Place, offsets: Sequence[int]) -> dict[int, Tile]:
    encoding = w.encoding
    assert isinstance(encoding, IntWeight) and isinstance(x.encoding, IntToken)
    _check_sums(x.encoding, encoding)
    with b.loop("g", 0, p.k, encoding.group, [b.const(0, "f32", (p.height, "BN")) for _ in offsets]) as loop:
        at, one = slice(loop.var, encoding.group), slice(loop.var, 1)
        codes = b.load(f"{x.name}.codes", *p.x(at))
        sums = b.load(f"{x.name}.sums", *p.x(one))
        out = []
        for n, off in enumerate(offsets):
            tile = b.load(f"{w.name}.codes", *p.w(off, at)).named(_name("w", n))
            scale = b.transpose(b.load(f"{w.name}.scale", *p.w(off, one)))
            scale = (b.cast("f32", scale) if scale.dtype != "f32" else scale).named(_name("s", n))
            out.append(b.op("fma", b.cast("f32", b.dot(sums, codes, tile)), scale, loop.carried[n]))
        loop.yield_(*out)
    scale = b.load(f"{x.name}.scale", *p.x(slice(0, 1)))
    return {off: r * scale for off, r in zip(offsets, loop.results, strict=True)}


def _whole(b: KernelBuilder, x: Buffer, w: Buffer, p: Place, offsets: Sequence[int]) -> dict[int, Tile]:
    assert isinstance(w.encoding, IntWeight) and isinstance(x.encoding, IntToken)
    _check_sums(x.encoding, w.encoding)
    start = b.load(f"{x.name}.sums", *p.x(slice(0, 1))) + b.const(0, "i32", (p.height, "BN"))
    with b.loop("k", 0, p.k, "BK", [start for _ in offsets]) as loop:
        at = slice(loop.var, "BK")
        codes = b.load(f"{x.name}.codes", *p.x(at))
        out = []
        for n, off in enumerate(offsets):
            tile = b.load(f"{w.name}.codes", *p.w(off, at)).named(_name("w", n))
            out.append(b.dot(loop.carried[n], codes, tile))
        loop.yield_(*out)
    scale = b.load(f"{x.name}.scale", *p.x(slice(0, 1)))
    done: dict[int, Tile] = {}
    for off, r in zip(offsets, loop.results, strict=True):
        row = b.transpose(b.load(f"{w.name}.scale", *p.w(off, slice(0, 1))))
        done[off] = b.cast("f32", r) * b.cast("f32", row) * scale
    return done


def _check_sums(x: IntToken, w: IntWeight) -> None:
    if (x.group, x.zero) != w.sums():
        group, zero = w.sums()
        raise CannotEmit(f"activations carry sums={x.group}, zero={x.zero}; weights {w} need sums={group}, zero={zero}")


# ------------------------------------------------------------------ schedules
def schedules(x: Buffer, w: Buffer, parts: int, k: int, width: int) -> tuple[Schedule, ...]:
    """Sizes and places for one kernel of `width` output columns: the register rule is at most 24 accumulators of 32 (f32
    carries included); a column tile divides the padded width, so that none reads past its panels."""
    if isinstance(x.encoding, IntToken):
        assert isinstance(w.encoding, IntWeight)
        return _integer_schedules(w.encoding, parts, k, width)
    return _float_schedules(x, w, parts, k, width)


def _columns(width: int, most: int) -> int:
    """The widest column tile up to `most`, in whole panels, that divides the padded width."""
    panels = -(-width // PANEL)
    return PANEL * max(n for n in range(1, max(most // PANEL, 1) + 1) if panels % n == 0)


def _one(
    target: str, when: int, sizes: dict[str, int], stages: Sequence[tuple[str, str]] = (),
    prefetch: Sequence[tuple[str, int]] = (),
) -> Schedule:  # fmt: skip
    cond = (Condition("M", "<=", when),) if when else ()
    return Schedule(target, tuple(sorted(sizes.items())), cond, ("j", "i"), "j", tuple(stages), tuple(prefetch))


def _staged(names: str, parts: int) -> list[tuple[str, str]]:
    return [(_name(n, p), "j") for n in names for p in range(parts)]


def _integer_schedules(w: IntWeight, parts: int, k: int, width: int) -> tuple[Schedule, ...]:
    wide = {} if w.group else {"BK": _divisor(k, 64)}
    loop = "g" if w.group else "k"
    ahead = [(loop, max(1, 384 // (w.group or wide["BK"])))]
    stage = _staged("ws", parts) if w.group else _staged("w", parts)
    small, rows, cols = max(2, 8 // parts), 6, _columns(width, max(16, 32 // parts))
    out: list[Schedule] = []
    for level in ("avx512_bf16", "avx512_vnni", "avx512"):
        out.append(_one(level, 16, {"BM": small, "BN": 16, **wide}, (), ahead))
        out.append(_one(level, 0, {"BM": rows, "BN": cols, **wide}, stage if w.bits < 8 else (), ()))
    out.append(_one("avx2", 4, {"BM": max(1, 4 // parts), "BN": 16, **wide}, (), ahead))
    out.append(_one("avx2", 0, {"BM": max(1, 3 // parts), "BN": 16, **wide}, stage if w.bits < 8 else (), ()))
    out.append(_one("*", 0, {"BM": 2, "BN": 16, **wide}))
    return tuple(out)


def _float_schedules(x: Buffer, w: Buffer, parts: int, k: int, width: int) -> tuple[Schedule, ...]:
    decode = not isinstance(w.encoding, Dense) or w.encoding.dtype != x.dtype
    stage = _staged("w", parts) if decode else []
    bk = _divisor(k, 8)
    small, cols = max(2, 8 // parts), _columns(width, max(16, 64 // parts))
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
