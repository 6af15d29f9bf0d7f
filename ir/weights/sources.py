"""Evaluating weight expressions, one tensor at a time, from safetensors files or arrays of this process.

In: a `Weight`. Out: its values as held arrays, before any encoding. Raises `RefusedError` naming file, key
and expected shape. Independent of graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Apply, Inline, Stored, Weight, WeightExpr, walk_expr
from tilewright.ir.numbers import STORED, finite_bits, from_bits, hold, largest
from tilewright.ir.ops.base import Array
from tilewright.ir.ops.common import shape_text
from tilewright.ir.reach import Misfit, misfits
from tilewright.ir.solver import Streams, parse_stored, solve_rows
from tilewright.ir.text.attributes import attrs_text
from tilewright.ir.weights.low_rank import part_shape
from tilewright.ir.weights.safetensors import SafeTensors
from tilewright.ir.weights.solved import FOLDER, SOLVED, solver_text, streams_of
from tilewright.ir.weights.transforms import WEIGHT_FNS

#: what the interpreter takes: a store, or any function from a weight to its values
Weights = Callable[[Weight], Array]
#: what a `Stored.file` begins with if the file lies in the adapter's directory
ADAPTER = "adapter:"
#: the largest finite numbers
LARGEST, LARGEST_BF16 = np.finfo(np.float32).max, 2.0**127 * (2 - 2**-7)


class WeightStore:
    """Tensors of a checkpoint directory, of this process (`memory`), or both. Calling it with a `Weight`
    gives its values.
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        memory: Mapping[str, Array] | None = None,
        adapter: str | Path | None = None,
        solved: str | Path | None = None,
    ) -> None:
        """`solved`: the folder of what calibration found, which sources that begin with `solved:` name."""
        self.directory = None if directory is None else Path(directory)
        self.adapter = None if adapter is None else Path(adapter)
        self.memory = dict(memory or {})
        self.solved = None if solved is None else Path(solved)
        #: what lives as long as the store does, as a temporary folder that it reads from
        self.keeps: object = None
        self._open: dict[str, SafeTensors] = {}
        #: the value last evaluated whole: an expression whose rows cannot be read by themselves
        self._whole: dict[WeightExpr, Array] = {}

    def __call__(self, weight: Weight) -> Array:
        return self.load(weight)

    def load(self, weight: Weight) -> Array:
        """The weight's values in its own dtype, checked against its shape. RefusedError if anything does not
        fit."""
        try:
            x = self.evaluate(weight.source)
        except RefusedError as e:
            raise RefusedError(e.message, f"weight @{weight.name}: {e.where}".rstrip(": "), e.hint) from None
        self._fits(weight, x.shape)
        return hold(x, weight.type.dtype)

    def rows(self, weight: Weight, lo: int, hi: int) -> Array:
        """Rows lo..hi of axis 0, reading no more than they need where the expression allows. Check the whole
        weight's shape with `shape` first."""
        return hold(self._rows(weight.source, lo, hi), weight.type.dtype)

    def raw_rows(self, weight: Weight, lo: int, hi: int) -> tuple[Array, str] | None:
        """The same rows as stored bits with their dtype, where they are stored as they are, in one tensor or
        in several under each other; else None."""
        e = weight.source
        joined = isinstance(e, Apply) and e.fn == "concat" and dict(e.attrs).get("axis") == 0
        tensors = e.args if joined and isinstance(e, Apply) else (e,)
        parts, at = [], 0
        for tensor in tensors:
            if not isinstance(tensor, Stored):
                return None
            bits, dtype = self.raw(tensor)
            if at < hi and lo < at + len(bits):
                parts.append((bits[max(lo - at, 0) : hi - at], dtype))
            at += len(bits)
        if len({dtype for _, dtype in parts}) != 1:
            return None
        return parts[0] if len(parts) == 1 else (np.concatenate([bits for bits, _ in parts]), parts[0][1])

    def _rows(self, e: WeightExpr, lo: int, hi: int) -> Array:
        if isinstance(e, Stored):
            bits, dtype = self.raw(e)
            return from_bits(bits[lo:hi], dtype)
        if isinstance(e, Apply) and e.fn == SOLVED:
            return self._rows(e.args[0], lo, hi)
        if isinstance(e, Apply) and e.fn == "concat" and dict(e.attrs).get("axis") == 0:
            parts, at = [], 0
            for a in e.args:
                n = self.shape(a)[0]
                if at < hi and lo < at + n:
                    parts.append(self._rows(a, max(lo - at, 0), min(hi - at, n)))
                at += n
            return np.concatenate(parts)
        if isinstance(e, Apply) and e.fn in ("mul", "add") and (shape := self._broadcast(e)) is not None:
            whole = [len(s) < len(shape) or s[0] != shape[0] for s in map(self.shape, e.args)]
            return _apply(
                e,
                [
                    self.evaluate(a) if w else self._rows(a, lo, hi)
                    for a, w in zip(e.args, whole, strict=True)
                ],
            )
        if isinstance(e, Apply) and e.fn == "rotate" and dict(e.attrs).get("axis") == 1:
            return _apply(e, [self._rows(e.args[0], lo, hi)])
        if e not in self._whole:
            self._whole.clear()
            self._whole[e] = self.evaluate(e)
        return self._whole[e][lo:hi]

    def shape(self, e: WeightExpr) -> tuple[int, ...]:
        """Shape of an expression's value, without reading it where that is possible."""
        if isinstance(e, Stored):
            return tuple(self.raw(e)[0].shape)
        if isinstance(e, Apply) and e.fn in (SOLVED, "rotate"):
            return self.shape(e.args[0])
        if isinstance(e, Apply) and e.fn == "low_rank":
            return part_shape(self.shape(e.args[0]), **cast("dict[str, Any]", dict(e.attrs)))
        if isinstance(e, Apply) and e.fn == "concat" and dict(e.attrs).get("axis") == 0:
            shapes = [self.shape(a) for a in e.args]
            return (sum(s[0] for s in shapes), *shapes[0][1:])
        if isinstance(e, Apply) and e.fn in ("mul", "add") and (shape := self._broadcast(e)) is not None:
            return shape
        if e not in self._whole:
            self._whole.clear()
            self._whole[e] = self.evaluate(e)
        return tuple(self._whole[e].shape)

    def _broadcast(self, e: Apply) -> tuple[int, ...] | None:
        """Shape of a pointwise expression; None if it has no rows or its operands do not fit each other."""
        try:
            return tuple(np.broadcast_shapes(*(self.shape(a) for a in e.args))) or None
        except ValueError:
            return None

    def check(self, weight: Weight) -> None:
        """RefusedError if the stored tensors are missing or do not make the weight's shape."""
        try:
            shape = self.shape(weight.source)
        except RefusedError as e:
            raise RefusedError(e.message, f"weight @{weight.name}: {e.where}".rstrip(": "), e.hint) from None
        self._fits(weight, shape)

    def _fits(self, weight: Weight, shape: tuple[int, ...]) -> None:
        if shape != weight.type.shape:
            where = (
                ", ".join(f"{e.file}: {e.key}" for e in walk_expr(weight.source) if isinstance(e, Stored))
                or "inline"
            )
            message = f"has shape {shape_text(shape)}, expected {shape_text(weight.type.shape)}"
            raise RefusedError(
                message,
                f"weight @{weight.name} ({where})",
                "the checkpoint does not match the model's config",
            )

    def evaluate(self, e: WeightExpr) -> Array:
        """The value of an expression."""
        if isinstance(e, Inline):
            return from_bits(np.frombuffer(e.data, STORED[e.dtype]).reshape(e.shape), e.dtype)
        if isinstance(e, Stored):
            return from_bits(*self.raw(e))
        if e.fn == SOLVED:
            return self.evaluate(e.args[0])
        if e.fn == "slice" and isinstance(
            e.args[0], Stored
        ):  # cut the mapped bits, so that only the part is read
            bits, dtype = self.raw(e.args[0])
            return from_bits(_apply(e, [bits]), dtype)
        return _apply(e, [self.evaluate(a) for a in e.args])

    def raw(self, e: Stored) -> tuple[Array, str]:
        """A stored tensor's bits and dtype, mapped, not read."""
        if e.file == "memory":
            if e.key not in self.memory:
                raise RefusedError(
                    f"no tensor {e.key!r} in memory", "", "pass the module's tensors to the weight store"
                )
            x = np.asarray(self.memory[e.key])
            return x, {"float16": "f16", "bool": "bool"}.get(
                x.dtype.name, f"{x.dtype.kind}{8 * x.dtype.itemsize}"
            )
        return self.file(e.file).raw(e.key)

    def file(self, name: str) -> SafeTensors:
        """An opened file of the directory (`adapter:NAME`: of the adapter's); names that lead out of it are
        refused."""
        if name in self._open:
            return self._open[name]
        what, folder, inner = self._folder(name)
        if folder is None:
            raise RefusedError(
                f"needs the file {inner!r}, but no {what} directory is given", "", "pass the directory"
            )
        parts = (*PurePosixPath(inner).parts, *PureWindowsPath(inner).parts)
        absolute = PurePosixPath(inner).is_absolute() or PureWindowsPath(inner).drive
        if not inner or ".." in parts or absolute or "\0" in inner:
            raise RefusedError(f"file {inner!r} is outside the directory", str(folder))
        return self._open.setdefault(name, SafeTensors(folder / inner))

    def _folder(self, name: str) -> tuple[str, Path | None, str]:
        """Which directory a file lies in, as messages call it, and its name there."""
        for prefix, what, folder in (
            (ADAPTER, "adapter", self.adapter),
            (FOLDER, "calibration", self.solved),
        ):
            if name.startswith(prefix):
                return what, folder, name.removeprefix(prefix)
        return "model", self.directory, name

    def streams(self, weight: Weight, lo: int, hi: int) -> Streams | None:
        """What calibration found for rows lo..hi of a weight; None if its source names nothing found."""
        found = {name: self.raw(at)[0] for name, at in streams_of(weight.source).items()}
        rows = int(weight.type.shape[0]) if found else 0
        return {n: x[lo:hi] if len(x) == rows else x for n, x in found.items()} or None


def _apply(e: Apply, args: list[Array]) -> Array:
    if e.fn not in WEIGHT_FNS:
        raise RefusedError(f"no weight function {e.fn!r}", "", f"known: {', '.join(WEIGHT_FNS)}")
    attrs = dict(e.attrs)
    if e.fn == "fill" and math.prod(cast("tuple[int, ...]", attrs.get("shape", ()))) > 1 << 31:
        raise RefusedError(f"fill of {attrs['shape']} is too large", e.fn)
    try:
        return WEIGHT_FNS[e.fn](args, attrs)
    except (ValueError, IndexError, KeyError, TypeError) as err:
        shapes = ", ".join(shape_text(a.shape) for a in args)
        raise RefusedError(f"cannot apply to {shapes}: {err}", f"{e.fn}{attrs_text(e.attrs)}") from None


def stored_values(weights: Weights, weight: Weight) -> Array:
    """The values a kernel sees: through the weight's encoding, quantization error included."""
    x, encoding = weights(weight), weight.type.encoding
    if encoding is None or x.size == 0:
        return x
    return hold(
        encoding.decode(encoded(weights, weight, encoding, np.asarray(x, np.float32))), weight.type.dtype
    )


def encoded(
    weights: Weights, weight: Weight, encoding: Encoding, x: NDArray[np.float32], at: int = 0
) -> Streams:
    """Streams for rows `at`… of a weight, whose values are x: rounded to nearest, or as its solver says.
    RefusedError for values that are not numbers or beyond the encoding's range, and for a calibrated solver
    whose results are not at hand."""
    rows = x.reshape(-1, x.shape[-1]) if x.ndim else x.reshape(1, 1)
    check_values(weights, weight, encoding, rows, at * (len(rows) // max(len(x), 1)) if x.ndim else 0)
    text = solver_text(weight)
    solver = parse_stored(text)[0] if text else None
    if solver is None:
        return encoding.encode(x)
    solved = weights.streams(weight, at, at + len(x)) if isinstance(weights, WeightStore) else None
    if solved is not None:
        return solved
    if solver.calibrated:
        where, hint = f"weight @{weight.name}", "compile with --calibrate FILE"
        raise RefusedError(f"{text} has not been solved: it needs a calibration text", where, hint)
    streams = solve_rows(solver, rows, None, encoding)
    return {k: np.asarray(v).reshape(*x.shape[:-1], -1) for k, v in streams.items()}


# ------------------------------------------------------------------ values that cannot be stored
class OutOfRange(RefusedError):
    """A weight with rows that its encoding does not hold. `wider`: one of as many bytes that does, if there
    is one."""

    def __init__(self, weight: Weight, misfit: Misfit) -> None:
        encoding = weight.type.encoding
        assert encoding is not None
        self.weight, self.wider = weight.name, encoding.wider()
        other = self.wider or ("bf16" if misfit.size < LARGEST_BF16 else "f32")
        hint = f"choose another encoding with a rule {weight.name!r} = '{other}'"
        super().__init__(f"{misfit} of {encoding}", f"weight @{weight.name}", hint)


def check_values(
    weights: Weights, weight: Weight, encoding: Encoding, rows: NDArray[np.float32], at: int = 0
) -> None:
    """RefusedError for rows [N, K], the first of them row `at` of the weight, that are not numbers or that
    the encoding does not hold. Rows too small for a format without a wider variant lose their precision, down
    to zero.
    """
    sizes = largest(rows)
    if not np.isfinite(sizes).all():
        raise not_finite(weights, weight)
    found = [m for m in misfits(encoding, rows, sizes) if m.beyond or encoding.wider() is not None]
    if found:
        raise OutOfRange(weight, replace(found[0], row=at + found[0].row))


def check_bits(weights: WeightStore, weight: Weight, bits: Array, dtype: str, lo: int = 0) -> None:
    """The same for numbers stored as they are, rows lo… of the weight. -inf passes in a module's own tensors
    that no linear multiplies with: masks hold it."""
    if finite_bits(bits, dtype):
        return
    stored = [e for e in walk_expr(weight.source) if isinstance(e, Stored)]
    values = np.asarray(from_bits(bits, dtype), np.float32)
    own = weight.type.encoding is None and all(e.file == "memory" for e in stored)
    if own and not (np.isnan(values) | (values > LARGEST)).any():
        return
    x = np.asarray(weights.rows(weight, lo, lo + len(bits)) if bits.ndim else weights(weight))
    if np.isfinite(x.astype(np.float32)).all():
        sizes = largest(np.asarray(x, np.float32).reshape(len(bits) if bits.ndim else 1, -1))
        row = int(sizes.argmax())
        message = f"row {lo + row} holds {sizes[row]:.4g}, beyond the range of {dtype}"
        raise RefusedError(
            message, f"weight @{weight.name}", f"store it as f32: a rule {weight.name!r} = 'f32'"
        )
    raise not_finite(weights, weight)


def not_finite(weights: Weights, weight: Weight) -> RefusedError:
    """The error that counts them over the whole tensor."""
    x = np.asarray(weights(weight), np.float32)
    nan, inf = int(np.isnan(x).sum()), int(np.isinf(x).sum())
    at = [int(i) for i in np.argwhere(~np.isfinite(x))[0]] if nan + inf else []
    message = f"contains {nan} NaN and {inf} infinite values, the first at {at}"
    return RefusedError(
        message, f"weight @{weight.name}", "repair the checkpoint: no encoding can store them"
    )
