"""What each weight is used for: contraction, embedding, head, both, or anything else.

In: a module. Out: a role by weight name. Knows no encoding.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.ops.base import OPS
from tilewright.passes.lower.record import is_view, lowering_of, matrix_of

MATRIX, HEAD, EMBEDDING, TIED, OTHER = "matrix", "head", "embedding", "tied", "other"


def roles(module: Module) -> dict[str, str]:
    """Role of every weight. `tied`: read by a gather and by a contraction."""
    kinds: dict[str, set[str]] = {}
    for graph in module.graphs:
        heads = {id(op) for op in head_ops(graph)}
        for op in graph.ops:
            for n, o in enumerate(op.operands):
                if o[0] == "@":
                    kinds.setdefault(o[1:], set()).add(_kind(op, n, id(op) in heads))
    return {name: _role(k) for name, k in kinds.items()}


def _kind(op: Op, operand: int, head: bool) -> str:
    record = lowering_of(op)
    if record is not None and record.matrix is not None and operand == record.matrix.operand:
        return HEAD if head else MATRIX
    looked_up = record is not None and operand == record.table and op.attr("axis") == 0
    return EMBEDDING if looked_up else OTHER


def _role(kinds: set[str]) -> str:
    if OTHER in kinds:
        return OTHER
    if EMBEDDING in kinds:
        return TIED if kinds - {EMBEDDING} else EMBEDDING
    return HEAD if HEAD in kinds else MATRIX


def looks_up(op: Op) -> str | None:
    """The weight whose rows an op looks up, as an operand; None for other ops."""
    record = lowering_of(op)
    if record is None or record.table is None or op.operands[record.table][0] != "@":
        return None
    return op.operands[record.table]


def product_of(op: Op) -> tuple[str, str] | None:
    """(x, w) of an op that computes sums of products of x's last axis and the rows of w, and perhaps adds a
    bias: a contraction with one matrix that its record says to be linear in both. None for other ops."""
    matrix, linear = matrix_of(op), OPS[op.name].linear
    if matrix is None or matrix.experts or matrix.windows:
        return None
    both = all(any(n in group for group in linear) for n in (matrix.operand, matrix.times))
    return (op.operands[matrix.times], op.operands[matrix.operand]) if both else None


def head_ops(graph: Graph) -> list[Op]:
    """Contractions with one matrix whose result reaches an output through nothing but pointwise ops and
    views.
    """
    producers, found = graph.producers(), list[Op]()
    work, seen = list(graph.outputs), set[str]()
    while work:
        o = work.pop()
        op = producers.get(o[1:]) if o[0] == "%" else None
        if op is None or o in seen:
            continue
        seen.add(o)
        matrix = matrix_of(op)
        if matrix is not None and not matrix.experts:
            found.append(op)
        elif OPS[op.name].expr is not None or is_view(op):
            work += op.operands
    return found


def check_rules(rules: Iterable[tuple[str, str]], names: Iterable[str], where: str) -> None:
    """RefusedError for a rule that matches none of the weights: it would be ignored."""
    known = list(names)
    for pattern, value in rules:
        if not any(fnmatchcase(name, pattern) for name in known):
            bare = pattern.strip("*")
            near = difflib.get_close_matches(bare, known, 3, 0.3) or known[:3]
            hint = (
                f"similar weight names: {', '.join(near)}, …: `tilewright dump DIR --stage "
                "merge-linears` lists all names"
            )
            raise RefusedError(f"the rule {pattern!r} = {value!r} matches no weight", where, hint)


def first_rule(rules: Iterable[tuple[str, str]], name: str) -> str | None:
    """The value of the first rule whose pattern (shell wildcards) matches a weight name."""
    return next((value for pattern, value in rules if fnmatchcase(name, pattern)), None)
