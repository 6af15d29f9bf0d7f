"""Contractions with blocked weights: the dot of a block first, its scale afterwards (MixPE).

In: buffers, the position of a tile, column offsets. Out: f32 accumulators. The encoding's contraction form
gives units, factors and zero points as tile formulas; the streams they read and the packing of codes are
known to the encoding alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.backends.base import numbered
from tilewright.ir.affine import Affine
from tilewright.ir.contraction_form import ContractionForm, OperandForm
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import Buffer
from tilewright.passes.lower.contraction_tile import TilePosition
from tilewright.passes.lower.dims import CannotEmit


def integer_dot(
    b: KernelBuilder, x: Buffer, w: Buffer, place: TilePosition, offsets: Sequence[int]
) -> dict[int, Tile]:
    """int8 activations with weights whose units are integers."""
    e, operand = w.contraction_form, x.operand_form
    if e is None or e.zero is None:
        raise CannotEmit(f"int8 activations need weights whose units are integers, got {w.encoding}")
    assert operand is not None
    if e.meeting(operand) != operand:
        raise CannotEmit(
            f"activations as {x.encoding} do not provide the sums that weights as {w.encoding} need"
        )
    form = _IntegerForm(b, x, w, place, e)
    return form.grouped(offsets) if form.block_size else _whole(form, offsets)


def float_dot(
    b: KernelBuilder, x: Buffer, w: Buffer, place: TilePosition, offsets: Sequence[int]
) -> dict[int, Tile] | None:
    """Float activations with exact units. None if the weights have no such form, or have an offset per row,
    for which they must be decoded first.
    """
    e = w.contraction_form
    if e is None or not e.block and e.has_offset and not e.terms:
        return None
    form = _FloatForm(b, x, w, place, e)
    return form.grouped(offsets) if e.block else _channel(form, offsets)


@dataclass(frozen=True)
class _Form:
    """One contraction with weights whose blocks share a scale: a dot per block, then one fused multiply-add
    with the scale."""

    b: KernelBuilder
    x: Buffer
    w: Buffer
    place: TilePosition
    encoding: ContractionForm

    @property
    def block_size(self) -> int:
        """Elements of K per dot, after which scales are applied: a block of the weights or else of the
        activations."""
        operand = self.x.operand_form
        return self.encoding.block or (operand.block if operand is not None else 0)

    def reader(self, offset: int, at: object, block: object, outer: object) -> Callable[[str], Tile]:
        """Reads the streams of the columns at `offset`: entries per element, or the entry that covers the
        block."""
        spans = {"element": at, "block": block, "outer": outer, "row": slice(0, 1), "tensor": slice(0, 1)}

        def get(stream: str) -> Tile:
            return self.entry(offset, stream, spans[self.encoding.covers(stream)])

        return get

    def entry(self, offset: int, stream: str, at: object) -> Tile:
        """Entries of one stream of the columns at `offset`."""
        return self.b.load(f"{self.w.name}.{stream}", *self.place.w(offset, at))

    def grouped(self, offsets: Sequence[int]) -> dict[int, Tile]:
        """The loop over blocks, inside a loop over blocks of blocks if the encoding has them; the tile per
        column offset."""
        b, outside, k = self.b, self.encoding.outer, self.place.k
        init = [b.const(0, self.carry, (self.place.height, "BN")) for _ in offsets]
        if not outside:
            results = self._loop("g", k, offsets, init, Affine(), None)
        else:
            with b.loop("s", 0, k, outside, init) as outer:
                outer.yield_(
                    *self._loop("g", outside, offsets, outer.carried, outer.var, slice(outer.var, 1))
                )
            results = outer.results
        return {off: self.finish(off, r) for off, r in zip(offsets, results, strict=True)}

    def _loop(
        self, var: str, extent: int, offsets: Sequence[int], init: Sequence[Tile], base: Affine, outer: object
    ) -> tuple[Tile, ...]:  # fmt: skip
        """Each iteration covers the smallest run of blocks that ends on a whole byte in every stream."""
        block = self.block_size
        step = math.lcm(self.encoding.step, block)
        with self.b.loop(var, 0, extent, step, init) as loop:
            sums = list(loop.carried)
            for t in range(step // block):
                start = base + loop.var + t * block
                at, one = slice(start, block), slice(start, 1)
                xs = self.operand(at, one)
                for n, off in enumerate(offsets):
                    get = self.reader(off, at, one, outer)
                    sums[n] = self.block(xs, get, sums[n], n * (step // block) + t)
            loop.yield_(*sums)
        return loop.results

    # ------------------------------------------------------------ what integer and float dots do differently
    @property
    def carry(self) -> str:
        return "f32"

    def operand(self, at: slice, one: slice) -> tuple[Tile, ...]:
        """The tiles of activations that a block needs: the left operand of its dot first."""
        raise AssertionError

    def block(self, xs: tuple[Tile, ...], get: Callable[[str], Tile], acc: Tile, n: int) -> Tile:
        """The accumulator after one block, the n-th of its loop body."""
        raise AssertionError

    def summed(self, xs: tuple[Tile, ...], get: Callable[[str], Tile], acc: Tile, n: int, total: str) -> Tile:
        """A dot for every term of a block, each times its own factor."""
        b, e = self.b, self.encoding
        for t in range(e.terms):
            at = n * e.terms + t
            bits = e.term(b, get, t).named(numbered("w", at))
            start = b.const(0, total, (self.place.height, "BN"))
            dot = b.dot(start, xs[0], bits) if total == "i32" else b.bit_dot(start, xs[0], bits)
            acc = b.op("fma", self.scaled(dot, xs), self.turned(e.factor(b, get, t), numbered("s", at)), acc)
        return acc

    def scaled(self, dot: Tile, xs: tuple[Tile, ...]) -> Tile:
        """A block's dot as f32."""
        return self.b.cast("f32", dot)

    def finish(self, offset: int, acc: Tile) -> Tile:
        """The accumulator times the row's factors, plus side streams: after the last block."""
        row = self.encoding.row(self.b, self.reader(offset, slice(0, 1), slice(0, 1), slice(0, 1)))
        return self.beside(offset, acc if row is None else acc * self.turned(row, ""), self.x.name)

    def beside(self, offset: int, acc: Tile, x: str) -> Tile:
        """The accumulator plus the products of the side streams; `x`: the activations, as
        loaded.
        """
        for side in self.w.sides:
            acc = side.tile_contract(
                self.b,
                acc,
                lambda at: self.b.load(x, *self.place.x(at)),
                lambda stream, at: self.entry(offset, stream, at),
                self.place.k,
            )
        return acc

    def turned(self, scale: Tile, name: str) -> Tile:
        """[BN, 1] as [1, BN]."""
        turned: Tile = self.b.cast("f32", self.b.transpose(scale))
        return turned.named(name) if name else turned


@dataclass(frozen=True)
class _IntegerForm(_Form):
    """int8 codes on both sides. The zero point's share is the accumulator's initial value, stored by the
    activation encoder."""

    @property
    def carry(self) -> str:
        return "i32" if self._whole_part else "f32"

    @property
    def _whole_part(self) -> bool:
        return self.encoding.integer_parts and not self._x.block

    @property
    def _x(self) -> OperandForm:
        operand = self.x.operand_form
        assert operand is not None
        return operand

    def operand(self, at: slice, one: slice) -> tuple[Tile, ...]:
        """Codes, sums, and the scale if each block of the activations has its own."""
        x, rows = self.x.name, self.place.x(one)
        codes = self.b.load(f"{x}.codes", *self.place.x(at))
        sums = (
            self.b.load(f"{x}.sums", *rows)
            if self.encoding.zero
            else self.b.const(0, "i32", (self.place.height, 1))
        )
        return (codes, sums, self.b.load(f"{x}.scale", *rows)) if self._x.block else (codes, sums)

    def scaled(self, dot: Tile, xs: tuple[Tile, ...]) -> Tile:
        whole: Tile = self.b.cast("f32", dot)
        return whole * xs[2] if self._x.block else whole

    def block(self, xs: tuple[Tile, ...], get: Callable[[str], Tile], acc: Tile, n: int) -> Tile:
        b, e = self.b, self.encoding
        codes, sums, *_ = xs
        start = sums
        zeros = e.zeros(b, get)
        if zeros is not None:
            start = sums * b.cast("i32", b.transpose(zeros)).named(numbered("z", n))
        offset = e.offset(b, get)
        if e.terms:
            acc = self.summed(xs, get, acc, n, "i32")
            return b.op(
                "fma",
                self.scaled(sums, xs),
                b.op("neg", self.turned(offset, "")).named(numbered("o", n)),
                acc,
            )
        tile = e.integers(b, get).named(numbered("w", n))
        if offset is not None:
            start = b.const(0, "i32", (self.place.height, "BN"))
        dot = b.dot(start, codes, tile)
        if self._whole_part:
            return acc + dot * b.transpose(e.whole_part(b, get)).named(numbered("s", n))
        part = e.part(b, get)
        value = self.scaled(dot, xs)
        acc = acc + value if part is None else b.op("fma", value, self.turned(part, numbered("s", n)), acc)
        if offset is None:
            return acc
        return b.op(
            "fma", self.scaled(sums, xs), b.op("neg", self.turned(offset, "")).named(numbered("o", n)), acc
        )

    def finish(self, offset: int, acc: Tile) -> Tile:
        whole = self.b.cast("f32", acc)
        done = super().finish(
            offset, whole * self.encoding.unit_scale if self.encoding.unit_scale != 1 else whole
        )
        return (
            done if self._x.block else done * self.b.load(f"{self.x.name}.scale", *self.place.x(slice(0, 1)))
        )

    def beside(self, offset: int, acc: Tile, x: str) -> Tile:
        if self.w.sides and self._x.block:
            raise CannotEmit(
                f"weights as {self.w.encoding}: side streams need activations with one scale per token, "
                f"got {self.x.encoding}"
            )
        return super().beside(offset, acc, f"{x}.codes")


@dataclass(frozen=True)
class _FloatForm(_Form):
    """Exact units in the activations' dtype, or in f32; a block's offset is multiplied by the sum of its
    activations."""

    @property
    def dtype(self) -> str:
        e = self.encoding
        return "bf16" if self.x.dtype == "bf16" and e.narrow and not e.terms else "f32"

    def operand(self, at: slice, one: slice) -> tuple[Tile, ...]:
        b = self.b
        xs = b.load(self.x, *self.place.x(at))
        if not (self.encoding.has_offset or self.encoding.has_zeros):
            return (b.cast(self.dtype, xs),)
        return b.cast(self.dtype, xs), b.reduce("add", b.cast("f32", xs), 1)

    def block(self, xs: tuple[Tile, ...], get: Callable[[str], Tile], acc: Tile, n: int) -> Tile:
        b, e = self.b, self.encoding
        if e.terms:
            acc = self.summed(xs, get, acc, n, "f32")
            return b.op("fma", xs[1], self.turned(e.offset(b, get), numbered("o", n)), acc)
        tile = e.units(b, get, self.dtype, centred=False).named(numbered("w", n))
        dot = b.dot(b.const(0, "f32", (self.place.height, "BN")), xs[0], tile)
        scale = self.turned(e.part(b, get), numbered("s", n))
        acc = b.op("fma", dot, scale, acc)
        zeros, offset = e.zeros(b, get), e.offset(b, get)
        if zeros is not None:
            less = (scale * b.op("neg", b.cast("f32", b.transpose(zeros)))).named(numbered("o", n))
            return b.op("fma", xs[1], less, acc)
        return acc if offset is None else b.op("fma", xs[1], self.turned(offset, numbered("o", n)), acc)


def _channel(form: _FloatForm, offsets: Sequence[int]) -> dict[int, Tile]:
    """Float activations and one scale per row: exact units, the scale after the last k."""
    b, x, p = form.b, form.x, form.place
    with b.loop("k", 0, p.k, "BK", [b.const(0, "f32", (p.height, "BN")) for _ in offsets]) as loop:
        at = slice(loop.var, "BK")
        xs = b.cast(form.dtype, b.load(x, *p.x(at)))
        out = []
        for n, off in enumerate(offsets):
            tile = form.encoding.units(b, form.reader(off, at, slice(0, 1), None), form.dtype).named(
                numbered("w", n)
            )
            out.append(b.dot(loop.carried[n], xs, tile))
        loop.yield_(*out)
    return {off: form.finish(off, r) for off, r in zip(offsets, loop.results, strict=True)}


def _whole(form: _IntegerForm, offsets: Sequence[int]) -> dict[int, Tile]:
    """int8 codes and one scale per row: one integer sum, or one for every term of a value."""
    b, x, p = form.b, form.x, form.place
    e, row = form.encoding, (slice(0, 1), slice(0, 1))
    if e.has_offset and not e.terms:
        raise CannotEmit(f"{form.w.encoding}: an offset per row has no integer form; use a group, or asym")
    blank = b.const(0, "i32", (p.height, "BN"))
    start = [blank for _ in offsets]
    sums = b.load(f"{x.name}.sums", *p.x(slice(0, 1))) if e.zero else None
    if sums is not None and not e.terms:
        zeros = [e.zeros(b, form.reader(off, slice(0, 1), *row)) for off in offsets]
        start = [sums + blank if z is None else sums * b.cast("i32", b.transpose(z)) for z in zeros]
    many = max(e.terms, 1)
    with b.loop("k", 0, p.k, "BK", [s for s in start for _ in range(many)]) as loop:
        at = slice(loop.var, "BK")
        codes = b.load(f"{x.name}.codes", *p.x(at))
        out = []
        for n, off in enumerate(offsets):
            get = form.reader(off, at, *row)
            for t in range(many):
                tile = e.term(b, get, t) if e.terms else e.integers(b, get)
                out.append(b.dot(loop.carried[n * many + t], codes, tile.named(numbered("w", n * many + t))))
        loop.yield_(*out)
    if not e.terms:
        return {off: form.finish(off, r) for off, r in zip(offsets, loop.results, strict=True)}
    assert sums is not None
    each = [loop.results[n * many : (n + 1) * many] for n in range(len(offsets))]
    return {off: form.finish(off, _terms(form, off, sums, rs)) for off, rs in zip(offsets, each, strict=True)}


def _terms(form: _IntegerForm, offset: int, sums: Tile, results: Sequence[Tile]) -> Tile:
    """The integer sum of each term times the row's factor for it, plus the offset's share."""
    b, e = form.b, form.encoding
    get = form.reader(offset, slice(0, 1), slice(0, 1), slice(0, 1))
    acc = b.cast("f32", sums) * b.op("neg", form.turned(e.offset(b, get), ""))
    for t, r in enumerate(results):
        acc = b.op("fma", b.cast("f32", r), form.turned(e.factor(b, get, t), ""), acc)
    return acc
