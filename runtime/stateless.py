"""Graphs without state: named arrays in, named arrays out. Symbols take their values from the inputs' shapes.

In: a library, the graph's entry in the manifest. Out: arrays. Independent of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilewright.runtime.arguments import array_of
from tilewright.runtime.bf16 import from_bf16, to_bf16
from tilewright.runtime.checks import read_checks
from tilewright.runtime.errors import ArtifactError, SessionError
from tilewright.runtime.library import Library, NativeSession
from tilewright.runtime.manifest import GraphEntry, TensorEntry
from tilewright.runtime.structure import Structure

Array = NDArray[np.generic]
#: NumPy types at the boundary. NumPy has no bf16: it travels as its bits, and is float32 to the caller
DTYPES = {
    "bool": np.bool_, "i8": np.int8, "u8": np.uint8, "i16": np.int16, "u16": np.uint16, "i32": np.int32,
    "u32": np.uint32,
    "i64": np.int64, "f16": np.float16, "bf16": np.uint16, "f32": np.float32, "f64": np.float64,
}  # fmt: skip
#: more than this many elements in one output is a damaged artifact, not a model
MOST = 1 << 33


class StatelessGraph:
    """One graph, ready to run."""

    def __init__(
        self,
        library: Library,
        entry: GraphEntry,
        threads: int | None,
        meta: Mapping[str, object],
        alone: bool = True,
    ) -> None:
        """`alone`: the artifact's only graph, so that all of `meta` is about it."""
        number = library.graph(entry.name)
        if number is None:
            raise ArtifactError(
                f"the library has no graph {entry.name!r}", "manifest.json", "compile the model again"
            )
        self.library, self.entry, self.number = library, entry, number
        self.native = NativeSession(library, 0, threads)
        self.ranges = library.ranges()
        self.checks = read_checks(meta, [t.name for t in entry.outputs], alone)
        hidden = {c.name for c in self.checks}
        results = [t.name for t in entry.outputs if t.name not in hidden]
        self.structure = Structure.of(meta, [t.name for t in entry.inputs], results)

    def run(self, given: Mapping[str, ArrayLike], bits: bool = False) -> dict[str, Array]:
        """Results by name, of inputs by name; `bits`: bfloat16 results stay the bits that they are. Raises
        SessionError naming the input that is of the wrong shape or type."""
        arrays = [self._array(t, given[t.name]) for t in self.entry.inputs]
        symbols = self._symbols(arrays)
        self._check(arrays, symbols)
        outputs = self._outputs(symbols)
        self.native.run(self.number, symbols, arrays, [a for _, a in outputs])
        narrow = {t.name for t in self.entry.outputs if t.dtype == "bf16" and not bits}
        results = {name: from_bf16(a) if name in narrow else a for name, a in outputs}
        sizes = dict(zip((n for n, _, _ in self.ranges), symbols, strict=True))
        for c in self.checks:
            c.look(results.pop(c.name), sizes)
        return results

    def _array(self, t: TensorEntry, value: ArrayLike) -> Array:
        where = f"input {t.name}"
        a, want = array_of(value, where), np.dtype(DTYPES.get(t.dtype, np.float32))
        numbers = not hasattr(value, "dtype")
        a = _bf16_bits(a, where, numbers) if t.dtype == "bf16" else a
        fits = a.dtype == want or (t.dtype != "bf16" and _converts(a, want, numbers))
        if not fits or a.ndim != len(t.shape):
            expected = f"expected {t.dtype}[{', '.join(t.shape)}]"
            raise SessionError(
                f"{expected}, got {a.dtype} of shape {list(a.shape)}",
                where,
                "" if fits else _how(t.dtype, want),
            )
        out = np.asarray(a, want, order="C")
        if a.dtype.kind in "iu" and a.dtype != want and not np.array_equal(out, a):
            wrong = a.reshape(-1)[int((out != a).reshape(-1).argmax())]
            raise SessionError(
                f"expected {t.dtype}, got {a.dtype} with {wrong}, which {t.dtype} cannot hold", where
            )
        return out

    def _symbols(self, arrays: Sequence[Array]) -> list[int]:
        found = {
            d: n
            for t, a in zip(self.entry.inputs, arrays, strict=True)
            for d, n in zip(t.shape, a.shape, strict=True)
        }
        return [int(found.get(name, lo)) for name, lo, _ in self.ranges]

    def _check(self, arrays: Sequence[Array], symbols: Sequence[int]) -> None:
        for (name, lo, hi), n in zip(self.ranges, symbols, strict=True):
            if not lo <= n <= hi:
                raise SessionError(
                    f"{name} is {n}, the model was compiled for {lo} to {hi}",
                    "model",
                    "compile with a wider range",
                )
        for i, (t, a) in enumerate(zip(self.entry.inputs, arrays, strict=True)):
            want = self.library.tensor(self.number, False, i, symbols)
            if want is None or want[:2] != (t.name, t.dtype):
                raise ArtifactError(
                    "manifest and library disagree on the inputs", t.name, "compile the model again"
                )
            if want[2] != a.shape:
                raise SessionError(f"expected shape {list(want[2])}, got {list(a.shape)}", f"input {t.name}")

        if self.library.tensor(self.number, False, len(arrays), symbols) is not None:
            raise ArtifactError(
                "the library takes more inputs than the manifest lists",
                self.entry.name,
                "compile the model again",
            )

    def _outputs(self, symbols: Sequence[int]) -> list[tuple[str, Array]]:
        out: list[tuple[str, Array]] = []
        while (t := self.library.tensor(self.number, True, len(out), symbols)) is not None:
            if int(np.prod(t[2], dtype=np.float64)) > MOST:
                raise ArtifactError(
                    f"output of shape {list(t[2])} is not valid", t[0], "compile the model again"
                )
            out.append((t[0], np.empty(t[2], DTYPES[t[1]])))
        return out


def _converts(a: Array, want: np.dtype[np.generic], numbers: bool) -> bool:
    """Whether values of this dtype are taken: integers (each is checked to fit), floats that widen. Python's
    `numbers` have no dtype of their own: any float is taken for a float, and integers too."""
    have = a.dtype.kind
    if want.kind in "iu":
        return have in "iu" or (numbers and not a.size)
    return want.kind == "f" and (
        (have == "f" and (numbers or np.can_cast(a.dtype, want, "safe"))) or (numbers and have in "iu")
    )


def _bf16_bits(a: Array, where: str, numbers: bool) -> Array:
    """float32 values that bf16 holds as their bits, Python's numbers rounded; any other array as it is."""
    if a.dtype.name == "bfloat16":  # the extension type of ml_dtypes
        return a.view(np.uint16)
    if a.dtype not in (np.float32, np.float16) and not (numbers and a.dtype.kind in "fiu"):
        return a
    out = to_bf16(a)
    lost = (from_bf16(out) != a) & ~np.isnan(a)
    if not numbers and lost.any():
        hint = "round the values first: x.to(torch.bfloat16)"
        raise SessionError(
            f"expected bf16, got {a.dtype} with {a[lost].flat[0]}, which bf16 cannot represent", where, hint
        )
    return out


def _how(dtype: str, want: np.dtype[np.generic]) -> str:
    if dtype == "bf16":
        return "pass bf16 as float32 with values that bf16 represents exactly, or as its bits in uint16"
    return (
        f"values are never rounded implicitly: pass x.astype(np.{want.name}), or "
        f"x.to(torch.{want.name}) of a tensor"
    )
