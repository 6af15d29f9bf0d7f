"""Windows of an image in kernels: which row of pixels a tap reads, and from where.

In: the window of an op, its operand in memory. Out: loads of pixels for a run of neighbouring results. Along
the last axis of space, the pixels of a stride lie apart; an image whose rows hold a multiple of the stride is
seen as rows of groups of so many pixels, where the same pixel of neighbouring groups is a plain span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Buffer, Size, Span
from tilewright.passes.lower.dims import affine_dim
from tilewright.passes.lower.emit import Emitter

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """The attributes of an op over windows. `before`: padding in front of each axis of space."""

    window: Sizes
    stride: Sizes
    dilation: Sizes
    before: Sizes

    @staticmethod
    def of(op: Op) -> Window:
        read = {k: cast(Sizes, op.attr(k)) for k in ("window", "stride", "dilation", "padding")}
        return Window(read["window"], read["stride"], read["dilation"], read["padding"][0::2])

    def runs(self, grouped: bool) -> list[tuple[int, int, int]]:
        """Taps of the last axis that read neighbouring pixels of one group of pixels, as (first tap, taps,
        pixel of the first, counted from the first pixel of the result's group)."""
        step, far, lead = self.stride[-1], self.dilation[-1], self.before[-1]
        at = [t * far - lead for t in range(self.window[-1])]
        out: list[tuple[int, int, int]] = []
        for t, pixel in enumerate(at):
            together = grouped and out and far == 1 and at[out[-1][0]] // step == pixel // step
            if together:
                first, count, start = out[-1]
                out[-1] = (first, count + 1, start)
            else:
                out.append((t, 1, pixel))
        return out


@dataclass(frozen=True)
class Image:
    """An image [N, space…, C] in memory. `group`: pixels that lie together as one in `buffer`, whose last two
    axes are then groups and group * C; 1: every pixel by itself."""

    buffer: Buffer
    window: Window
    channels: int
    group: int

    def pixels(
        self, e: Emitter, rows: Sequence[Affine], first: Affine, count: Size, at: tuple[int, Affine, Size],
        fill: float,
    ) -> Tile:  # fmt: skip
        """[count, lanes]: of the results from `first` on, the elements at = (pixel, channel, lanes): `pixel`
        is counted from where a result's own pixels begin. `rows`: batch and the other axes of space. Outside
        the image every element is `fill`."""
        pixel, channel, lanes = at
        if self.group > 1:
            behind, inside = divmod(pixel, self.group)
            span = Span(first + behind, count)
            channel = channel + inside * self.channels
        else:
            span = Span(first * self.window.stride[-1] + pixel, count)
        return e.b.load(self.buffer, *[At(r) for r in rows], span, Span(channel, lanes), other=fill)


def image_of(e: Emitter, op: Op, window: Window, vector: bool) -> Image | None:
    """The first operand in memory, for results in runs (`vector`) or one by one; None if runs of results
    would read pixels that lie apart. CannotEmit if it is computed in this kernel."""
    x = op.operands[0]
    *lead, width, channels = e.shapes(x)
    step = window.stride[-1]
    assert isinstance(channels, int)
    if step == 1 or not vector:
        return Image(e.in_memory(x, "x"), window, channels, 1)
    if not isinstance(width, int) or width % step:
        return None
    base = e.alias_of(x) or x
    e.in_memory(x, "x") if base in e.inside else None
    dims = [*map(affine_dim, lead), width // step, step * channels]
    dtype, _ = e.type_of(base).stored
    return Image(e.extra("x", dtype, dims, base), window, channels, step)
