"""Tables of the caches for the native runtime: where each tensor of a state lies, and where single rows do.

In: the states of a program. Out: C tables, which `tw_cache.h` reads. Independent of plans and kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tilewright.backends.cpp.literals import c_string
from tilewright.backends.storage import Part, Stream, state_streams
from tilewright.ir.graph.core import State

KINDS = {
    "home": "TW_HOMES",
    "skip": "TW_SKIP",
    "carry": "TW_CARRY",
    "pos": "TW_POSITIONS",
    "gone": "TW_GONE",
    "score": "TW_SCORES",
    "seen": "TW_SEEN",
    **dict.fromkeys(("summary", "worth", "list", "runs"), "TW_DERIVED"),
    "recent_k": "TW_RECENT",
    "recent_v": "TW_RECENT",
}


@dataclass
class CacheTables:
    """Rows of the tables by their C type. Layers share digits and pieces, which are equal."""

    streams: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    digits: list[str] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    known: dict[tuple[Part, ...], int] = field(default_factory=dict)

    def add(self, state: State) -> None:
        first, held = len(self.streams), {c.name: n for n, c in enumerate(state.streams)}
        for c, s in zip(state.streams, state_streams(state), strict=True):
            self.streams.append(self._stream(s, KINDS.get(c.name, "TW_ROWS")))
        found = [
            first + held[n] if n in held else -1 for n in ("home", "gone", "pos", "score", "skip", "seen")
        ]
        numbers = [state.heads, state.context, first, len(held), *found]
        select = str(state.select or "")
        names = [c_string(t) for t in (state.name, state.k.element, state.v.element, select)]
        self.states.append(f"{{{', '.join([*names, *map(str, numbers)])}}}")

    def _stream(self, s: Stream, kind: str) -> str:
        return (
            f"{{{c_string(s.name)}, {s.slot}LL, {s.heads}, {s.head_bytes}LL, {s.block}, {s.block_bytes}LL, "
            f"{kind}, {self._parts(s.rows)}, {len(s.rows)}}}"
        )

    def _parts(self, parts: tuple[Part, ...]) -> int:
        if parts not in self.known:
            rows = [self._part(p) for p in parts]
            self.known[parts] = len(self.parts)
            self.parts += rows
        return self.known[parts]

    def _part(self, p: Part) -> str:
        digits, pieces = len(self.digits), len(self.pieces)
        self.digits += [_numbers(d) for d in p.digits]
        self.pieces += [_numbers(x) for x in p.pieces]
        return f"{{{p.base}LL, {p.head}LL, {digits}, {len(p.digits)}, {pieces}, {len(p.pieces)}}}"


def _numbers(values: Sequence[int]) -> str:
    return "{" + ", ".join(f"{v}LL" for v in values) + "}"


def cache_tables(states: Sequence[State]) -> CacheTables:
    out = CacheTables()
    for s in states:
        out.add(s)
    return out
