"""expand-encodings: decoding loads of encoded buffers become loads of their streams plus arithmetic.

In: a kernel whose parameters may have encodings. Out: an equivalent kernel in which every load of such a
parameter reads a stream. `tile_decode` of the encoding emits the arithmetic; nothing here depends on a
particular encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tilewright.ir.errors import UnsupportedError
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.core import For, Kernel, Let, Load, Stmt, TileType, walk


def expand_encodings(kernel: Kernel) -> Kernel:
    """Every decoding load of an encoded buffer rewritten; value names are unchanged, so that schedules still
    refer to the same values."""
    if not any(b.encoding for b in kernel.params):
        return kernel
    numbers = [int(n) for n in defined_names(kernel) if n.isdecimal()]
    expander = _Expander(kernel, max(numbers, default=-1) + 1)
    return replace(kernel, body=expander.block(kernel.body))


def defined_names(kernel: Kernel) -> Iterator[str]:
    """Names of all values a kernel defines."""
    for s in walk(kernel.body):
        if isinstance(s, Let | Load):
            yield s.name
        elif isinstance(s, For):
            for c in s.carries:
                yield from (c.name, c.result)


class _Expander:
    def __init__(self, kernel: Kernel, first: int) -> None:
        self.kernel, self.first = kernel, first
        self.types: dict[str, TileType] = {}

    def block(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for s in body:
            if isinstance(s, Load) and "." not in s.buffer and self.kernel.buffer(s.buffer).encoding:
                out += self.decode(s)
            elif isinstance(s, For):
                self.types.update((c.name, c.type) for c in s.carries)
                out.append(replace(s, body=self.block(s.body)))
                self.types.update((c.result, c.type) for c in s.carries)
            else:
                out.append(s)
            if isinstance(s, Let | Load):
                self.types[s.name] = s.type
        return tuple(out)

    def decode(self, s: Load) -> tuple[Stmt, ...]:
        buffer = self.kernel.buffer(s.buffer)
        assert buffer.encoding is not None
        if s.other != 0:
            raise UnsupportedError(
                f"load of %{s.buffer} (as {buffer.encoding}) with else {s.other}: out-of-bounds elements "
                "can only read 0",
                f"kernel @{self.kernel.name}",
                "load without `else` and use `within` or `select` on the value",
            )  # fmt: skip
        b = KernelBuilder(
            self.kernel.name, list(self.kernel.params), locals=list(self.kernel.locals), first=self.first
        )
        b.types.update(self.types)
        t = buffer.encoding.tile_decode(b, buffer, s.index)
        last = b.build().body[-1]
        if (
            t.dtype != s.type.dtype
            or not isinstance(last, Let | Load)
            or last.name != t.name
            or isinstance(last, Load)
        ):
            b.op("cast", t, dtype=s.type.dtype)
        self.first = int(b.fresh())
        *before, final = b.build().body
        assert isinstance(final, Let)
        return (*before, replace(final, name=s.name))
