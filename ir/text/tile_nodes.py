"""The syntax tree of Tile IR text: nodes that still hold tokens, for positions, with affine sums folded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lark import Token

from tilewright.ir.affine import Affine
from tilewright.ir.layout import RecordSpec
from tilewright.ir.tile.core import Schedule, Size, TileType


class Problem(Exception):
    """A mistake at a token; the parser turns it into a ParseError with file and line."""

    def __init__(self, message: str, at: Token | None) -> None:
        super().__init__(message)
        self.message, self.at = message, at


@dataclass(frozen=True, slots=True)
class Entry:
    """One index entry: `start` or `start:size`."""

    start: Affine
    size: Size | None


@dataclass(frozen=True, slots=True)
class Expr:
    """A value as written. `op`: an operation's name, or `ref`, `literal`, `load`, `const`."""

    op: str
    at: Token
    args: tuple[Expr, ...] = ()
    attrs: tuple[tuple[str, Any], ...] = ()
    depth: int = 1


@dataclass(frozen=True, slots=True)
class LetNode:
    names: tuple[Token, ...]
    value: Expr
    type: TileType | None


@dataclass(frozen=True, slots=True)
class StoreNode:
    buffer: Token
    index: tuple[Entry, ...]
    value: Expr
    disjoint: bool


@dataclass(frozen=True, slots=True)
class ItemNode:
    name: Token | None
    init: Expr
    type: TileType | None


@dataclass(frozen=True, slots=True)
class LoopNode:
    names: tuple[Token, ...]
    var: Token
    lo: Affine
    hi: Affine
    step: Size
    items: tuple[ItemNode, ...]
    body: tuple[StmtNode, ...]
    yields: tuple[Expr, ...]
    depth: int


StmtNode = LetNode | StoreNode | LoopNode


@dataclass(frozen=True, slots=True)
class BufferNode:
    name: Token
    dtype: str
    dims: tuple[Affine, ...]
    record: RecordSpec | None
    encoding: Token | None
    range: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class AxisNode:
    var: str
    extent: Affine
    step: Size
    rows: bool


@dataclass(frozen=True, slots=True)
class KernelNode:
    name: Token
    params: tuple[BufferNode, ...]
    grid: tuple[AxisNode, ...]
    locals: tuple[BufferNode, ...]
    body: tuple[StmtNode, ...]
    schedules: tuple[Schedule, ...]
