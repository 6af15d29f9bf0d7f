"""What a recognising rule is handed: the old graph's lookups beside the builder of the new one.

In: nothing but the two. Out: helpers that emit ops on operands of the old graph. Knows no rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.passes.patterns import View


class Declined(Exception):
    """A pattern that fits in outline but not in detail; the message is the reason, for `--explain`."""


@dataclass
class Rewrite:
    """`old`: the graph being read. `b`: the graph being written. `memo`: new operands by what they were made
    for."""

    old: View
    b: GraphBuilder
    memo: dict[tuple[object, ...], str] = field(default_factory=dict)

    def emit(self, name: str, *operands: str, **attrs: Any) -> str:
        """An op on operands of the old graph, read under the renaming so far."""
        return self.b.op(name, *(self.b.mapped(o) for o in operands), **attrs)

    def once(self, name: str, *operands: str, **attrs: Any) -> str:
        """The same, shared by all that ask for it."""
        key = (name, operands, tuple(sorted(attrs.items(), key=lambda kv: kv[0])))
        if key not in self.memo:
            self.memo[key] = self.emit(name, *operands, **attrs)
        return self.memo[key]
