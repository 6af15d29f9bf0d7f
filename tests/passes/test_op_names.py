"""No pass, backend or command decides by the name of an op: what it must know stands in the op's records.

A name may be written where an op is made (`b.op("reshape", …)`), in the file of the op's own lowering or
rules, and in the files below, which are about particular ops. Names that Graph IR shares with Tile IR (scalar
primitives, `reshape`, `cast`, …) are also names of Tile IR operations below the lowering. A file that imports
neither graphs, ops nor passes never holds an op, so that a word which is also an op's name is no decision
there.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from tilewright.ir.ops import OPS
from tilewright.ir.tile.ops import PRIMITIVES, TILE_OPS
from tilewright.passes.lower.record import LOWERINGS
from tilewright.passes.rules import RULES

ROOT = Path(__file__).resolve().parents[2]
#: calls whose first argument names what is made: an op, a transformation of a weight, a kernel
MAKERS = ("op", "multi", "Op", "Apply", "emitter")
#: files and folders about particular ops, by how their paths begin, and why they name them
ABOUT: Mapping[str, str] = {
    "compiler/capture/": "translates operators of PyTorch",
    "compiler/calibration/torch_ops.py": "tables of ops as functions of PyTorch, open to additions",
    "passes/pack": "packs the tokens that masks of attention keep",
    "compiler/tasks/": "says what becomes of a classifier's scores",
    "passes/recognise": "finds particular ops in what they were decomposed to",
    "passes/channels_last": "knows which axis each op's attributes name",
    "passes/decompose": "spells particular ops out",
    "passes/expand": "spells particular ops out",
    "passes/reduce": "cuts tokens at attention, and scores them by it",
}
#: imports that let a file hold ops
OPS_COME_FROM = ("tilewright.ir.graph", "tilewright.ir.ops", "tilewright.passes")


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
        if isinstance(n, ast.Expr):  # a docstring, or a string that is not used
            yield n.value


def own(path: str) -> set[str]:
    """Ops whose lowering or rules stand in a file."""
    stem = "tilewright." + path.removesuffix(".py").replace("/", ".")
    records = (*LOWERINGS.values(), *RULES.values())
    return {r.op for r in records if any(f.__module__ == stem for f in functions_of(r))} | {
        r.op for r in LOWERINGS.values() if r.view is not None and path == "passes/lower/move.py"
    }


def functions_of(record: object) -> Iterator[Callable[..., object]]:
    """The functions that a record holds, also within what it holds."""
    if isinstance(record, tuple):
        for x in record:
            yield from functions_of(x)
    elif is_dataclass(record):
        for f in fields(record):
            yield from functions_of(getattr(record, f.name))
    elif callable(record):
        yield record


def holds_ops(source: str) -> bool:
    """Whether a file imports, anywhere in it, what could give it an op."""
    found = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = [n.module or "" for n in found if isinstance(n, ast.ImportFrom)]
    names += [a.name for n in found if isinstance(n, ast.Import) for a in n.names]
    return any(name.startswith(OPS_COME_FROM) for name in names)


def free_in(path: str) -> set[str]:
    """Names that a file may contain: operations of Tile IR below the lowering, scalar primitives anywhere."""
    below = path.startswith(("backends/", "passes/lower/"))
    return set(PRIMITIVES) | (set(TILE_OPS) if below else set())


def decided_by_name(path: str, source: str) -> set[str]:
    return names_in(source) - own(path) - free_in(path) if holds_ops(source) else set()


FILES = sorted(
    str(p.relative_to(ROOT)) for d in ("passes", "backends", "compiler") for p in (ROOT / d).rglob("*.py")
)


@pytest.mark.parametrize("path", [f for f in FILES if not f.startswith(tuple(ABOUT))])
def test_no_file_decides_by_name(path: str) -> None:
    assert decided_by_name(path, (ROOT / path).read_text()) == set()


@pytest.mark.parametrize("start", ABOUT)
def test_what_is_about_particular_ops_names_them(start: str) -> None:
    found = [f for f in FILES if f.startswith(start)]
    assert set().union(*(decided_by_name(f, (ROOT / f).read_text()) for f in found))


IMPORT = "from tilewright.ir.graph.core import Op\n"


def test_a_planted_name_is_found() -> None:
    source = (
        f'{IMPORT}def f(op, b):\n    """linear"""\n    b.op("linear", op)\n'
        '    return op.name in ("gather", "sum")\n'
    )
    assert decided_by_name("passes/fuse.py", source) == {"gather", "sum"}
    assert decided_by_name("passes/lower/gather.py", source) == {"sum"}
    assert decided_by_name("passes/rules/sequence.py", source) == {"sum"}
    assert decided_by_name("backends/cpp/x.py", f'{IMPORT}x = ("reshape", "add", "attend")') == {"attend"}
    assert decided_by_name("passes/fuse.py", source.removeprefix(IMPORT)) == set()
