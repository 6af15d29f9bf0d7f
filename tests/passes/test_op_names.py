"""No pass, backend or command decides by the name of an op: what it must know stands in the op's records.

A name may be written where an op is made (`b.op("reshape", …)`), in capture, which translates PyTorch's
operators, in passes that recognise, decompose or expand particular ops, and in the file of the op's own
lowering. Names that Graph IR shares with Tile IR (scalar primitives, `reshape`, `cast`, …) are words of Tile
IR below the lowering.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tilewright.ir.ops import OPS
from tilewright.ir.tile.ops import PRIMITIVES, TILE_OPS
from tilewright.passes.lower.record import LOWERINGS

ROOT = Path(__file__).resolve().parents[2]
#: calls whose first argument names what is made: an op, a transformation of a weight, a kernel
MAKERS = ("op", "multi", "Apply", "emitter")
#: translates operators of PyTorch
CAPTURE = "compiler/capture/"
#: passes about particular ops, by their names
ABOUT = ("passes/recognise", "passes/decompose", "passes/expand")
#: files that decide by name, and why they still do
ALLOWED = {
    "passes/facts.py": "a fact that passes need may be that an op is gone",
    "passes/canonicalize.py": "its rules are a table by op",
    "passes/patterns.py": "looks through reshapes, expansions and casts to a constant",
    "passes/flatten_tokens.py": "moves and attention have flat forms of their own",
    "passes/incrementalize.py": "attention over a sequence becomes attention over a cache",
    "passes/rotate.py": "which ops commute with a rotation of channels",
    "passes/channel_factors.py": "which ops commute with a factor per channel",
    "compiler/calibration/torch_ops.py": "translates ops to PyTorch's",
    "compiler/tools/ir_report.py": "`mean` is a column of a table",
    "compiler/cli/evaluate.py": "`decode` is a phase of generation",
    "backends/cpp/levels.py": "`all` asks for every level",
}


def names_in(source: str) -> set[str]:
    """Names of ops that literals of a file spell, but for docstrings and what is made."""
    tree = ast.parse(source)
    skipped = {id(n) for n in _skipped(tree)}
    return {
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant)
        and isinstance(n.value, str)
        and n.value in OPS
        and id(n) not in skipped
    }


def _skipped(tree: ast.AST) -> Iterator[ast.AST]:
    for n in ast.walk(tree):
        if isinstance(n, ast.Call) and n.args:
            name = n.func.attr if isinstance(n.func, ast.Attribute) else getattr(n.func, "id", "")
            if name in MAKERS:
                yield n.args[0]
        if isinstance(n, ast.Expr):  # a docstring, or a string that nobody reads
            yield n.value


def own(path: str) -> set[str]:
    """Ops whose lowering stands in a file."""
    stem = "tilewright." + path.removesuffix(".py").replace("/", ".")
    return {
        r.op for r in LOWERINGS.values()
        if any(f is not None and f.__module__ == stem for f in (r.emit, r.template, r.effect, r.cuts))
        or r.view is not None and path == "passes/lower/move.py"
    }  # fmt: skip


def free_in(path: str) -> set[str]:
    """Names that a file may spell: words of Tile IR below the lowering, scalar primitives anywhere."""
    below = path.startswith(("backends/", "passes/lower/"))
    return set(PRIMITIVES) | (set(TILE_OPS) if below else set())


def decided_by_name(path: str, source: str) -> set[str]:
    return names_in(source) - own(path) - free_in(path)


FILES = sorted(
    str(p.relative_to(ROOT)) for d in ("passes", "backends", "compiler") for p in (ROOT / d).rglob("*.py")
)


@pytest.mark.parametrize(
    "path", [f for f in FILES if not f.startswith((CAPTURE, *ABOUT)) and f not in ALLOWED]
)
def test_no_file_decides_by_name(path: str) -> None:
    assert decided_by_name(path, (ROOT / path).read_text()) == set()


@pytest.mark.parametrize("path", ALLOWED)
def test_a_file_that_may_still_does(path: str) -> None:
    assert decided_by_name(path, (ROOT / path).read_text()) != set()


def test_a_planted_name_is_found() -> None:
    source = (
        'def f(op, b):\n    """linear"""\n    b.op("linear", op)\n    return op.name in ("gather", "sum")\n'
    )
    assert decided_by_name("passes/fuse.py", source) == {"gather", "sum"}
    assert decided_by_name("passes/lower/gather.py", source) == {"sum"}
    assert decided_by_name("backends/cpp/x.py", 'x = ("reshape", "add", "attend")') == {"attend"}
