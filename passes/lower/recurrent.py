"""`recurrent`: all steps of a recurrent layer in one kernel, an instance for a few rows of the batch.

In: a region that holds the op alone. Out: a kernel that clears the states, so that each is known to be
written, and one that goes through time. A step multiplies the state before it, which it reads where the last
step stored it, with the matrix, a block of columns of every gate at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.ops.recurrent import GATES
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Buffer, Span
from tilewright.passes.lower.dims import RunTimeSize, affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Form, Lowering, register_lowering

#: rows of the batch of one instance, and elements of the state per step of a product
ROWS, DEPTH = 4, 16
Tiles = Sequence[Tile]


def _gru(e: Emitter, x: Tiles, h: Tiles, before: Tile) -> Tile:
    r, z = (e.op("sigmoid", a + b) for a, b in zip(x[:2], h[:2], strict=True))
    n = e.op("tanh", x[2] + r * h[2])
    return n + z * (before - n)


#: kinds with one state: its next value from what the input and the state give each gate, and the state before
_STEPS: Mapping[str, Callable[[Emitter, Tiles, Tiles, Tile], Tile]] = {
    "gru": _gru,
    "rnn_tanh": lambda e, x, h, before: e.op("tanh", x[0] + h[0]),
    "rnn_relu": lambda e, x, h, before: e.op("relu", x[0] + h[0]),
}


@dataclass(frozen=True)
class _Layer:
    """One layer: its op, the states in memory [T + 1, states, B, H], and the rows of an instance."""

    e: Emitter
    op: Op
    states: Buffer
    rows: Span
    hidden: int
    width: int

    @property
    def kind(self) -> str:
        return str(self.op.attr("kind"))

    def start(self, first: Affine) -> None:
        """The initial states."""
        with self.e.loop("f", 0, self.hidden, self.width) as loop:
            for n, o in enumerate(self.op.operands[3:]):
                at = (self.rows, Span(loop.var, self.width))
                value = self.e.whole(self.e.emit(o, at), at)
                self.e.b.store(self.states, self._place(first, n, at[1]), value)
            loop.yield_()

    def step(self, time: Affine, before: Affine, after: Affine) -> None:
        """One step of time: a block of columns after the other."""
        e, b = self.e, self.e.b
        with e.loop("j", 0, self.hidden, self.width) as loop:
            columns = Span(loop.var, self.width)
            h = self._products(loop.var, before)
            x = [self._gate(self.op.operands[0], (At(time), self.rows), loop.var, g) for g in range(len(h))]
            places = [self._place(t, n, columns) for n in (0, 1) for t in (before, after)]
            if self.kind == "lstm":
                self._lstm([a + c for a, c in zip(x, h, strict=True)], *places[1:])
            else:
                held = b.load(self.states, *places[0])
                b.store(self.states, places[1], _STEPS[self.kind](e, x, h, held))
            loop.yield_()

    def _lstm(self, gates: Tiles, h: Coords, cell: Coords, new: Coords) -> None:
        """`h`, `new`: where the states are stored; `cell`: where the second one was before."""
        e, b = self.e, self.e.b
        i, f, g, o = gates
        kept = e.op("sigmoid", f) * b.load(self.states, *cell)
        b.store(self.states, new, kept + e.op("sigmoid", i) * e.op("tanh", g))
        value = e.op("sigmoid", o) * e.op("tanh", b.load(self.states, *new))
        b.store(self.states, h, value)

    def _place(self, time: Affine, state: int, columns: Span) -> Coords:
        return At(time), At(Affine.of(state)), self.rows, columns

    def _gate(self, operand: str, lead: tuple[At | Span, ...], column: Affine, gate: int) -> Tile:
        return self.e.emit(operand, (*lead, Span(column + gate * self.hidden, self.width)))

    def _products(self, column: Affine, before: Affine) -> tuple[Tile, ...]:
        """The state times the matrix plus the bias, for every gate."""
        e, b, (_, w, bias) = self.e, self.e.b, self.op.operands[:3]
        shape = (self.rows.size, self.width)
        sums = [
            b.const(0, self.states.dtype, shape) + self._gate(bias, (), column, g)
            for g in range(GATES[self.kind][0])
        ]
        with e.loop("k", 0, self.hidden, DEPTH, sums) as loop:
            depth = Span(loop.var, DEPTH)
            h = b.load(self.states, At(before), At(Affine()), self.rows, depth)
            tiles = [b.transpose(self._gate(w, (depth,), column, g)) for g in range(len(sums))]
            loop.yield_(*(b.dot(s, h, t) for s, t in zip(loop.carried, tiles, strict=True)))
        return loop.results


def _recurrent(job: Job, op: Op) -> list[Built]:
    job.alone(op)
    steps, batch, _ = job.shape(op.operands[0])
    hidden = job.shape(op.operands[1])[0]
    if not isinstance(hidden, int):
        raise RunTimeSize(f"a state of width {hidden}, known at run time only")
    rows = 1 if batch == 1 else ROWS
    width = next(n for n in (64, 32, 16) if n == 16 or rows == 1 and hidden % n == 0)
    e = job.emitter("recurrent")
    states = e.buffer("%" + op.result.name, "states")
    i = e.b.grid("i", affine_dim(batch), rows)
    layer = _Layer(e, op, states, Span(i, rows), hidden, width)
    last, back = Affine.of(affine_dim(steps)), bool(op.attr("reverse"))
    layer.start(last if back else Affine())
    with e.loop("t", 0, last, 1) as loop:
        time = last - 1 - loop.var if back else loop.var
        layer.step(time, time + 1 if back else time, time if back else time + 1)
        loop.yield_()
    return [_cleared(job, op), job.finish(e)]


def _cleared(job: Job, op: Op) -> Built:
    """All states zero."""
    e = job.emitter("clear")
    y = e.buffer("%" + op.result.name, "y")
    *lead, hidden = job.shape("%" + op.result.name)
    at = [At(e.b.grid(f"i{n}", affine_dim(d), 1)) for n, d in enumerate(lead)]
    with e.loop("c", 0, affine_dim(hidden), DEPTH) as loop:
        e.b.store(y, (*at, Span(loop.var, DEPTH)), e.b.const(0, y.dtype, (DEPTH,)))
        loop.yield_()
    return job.finish(e)


register_lowering(Lowering("recurrent", Form.ALONE, template=_recurrent))
