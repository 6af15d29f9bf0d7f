"""Nothing outside `ir/encodings` knows a particular encoding: encodings answer questions themselves.

Read from the source by `ast`: `isinstance`, `issubclass`, `type(x) is C` and class patterns on any class of
`ir/encodings`, and imports of anything from there. `import tilewright.ir.encodings`, which registers them, is
all that others may do.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("ir", "passes", "backends", "compiler", "runtime")
HOME = Path("ir/encodings")
PACKAGE = "tilewright.ir.encodings"


def encoding_classes(root: Path) -> set[str]:
    """Names of the classes that `ir/encodings` defines."""
    trees = (ast.parse(p.read_text()) for p in (root / HOME).glob("*.py"))
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def asked(node: ast.AST) -> ast.expr | None:
    """The class, or the classes, that a piece of code tests a value for."""
    match node:
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, classes]):
            return classes
        case ast.Compare(left=ast.Call(func=ast.Name(id="type")), comparators=[classes]):
            return classes
        case ast.MatchClass(cls=classes):
            return classes
    return None


def names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.id if isinstance(node, ast.Name) else node.attr


def outside(root: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every node of the source outside `ir/encodings`, and where it stands."""
    for path in sorted(p for f in FOLDERS for p in (root / f).rglob("*.py")):
        if not path.relative_to(root).is_relative_to(HOME):
            for node in ast.walk(ast.parse(path.read_text())):
                yield f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}", node


def violations(root: Path, classes: set[str]) -> list[str]:
    found = []
    for where, node in outside(root):
        tested = asked(node)
        hit = sorted(classes & set(names(tested))) if tested is not None else []
        if hit:
            found.append(f"{where}: {', '.join(hit)}")
    return found


def imports(root: Path) -> list[str]:
    """What is imported by name from `ir/encodings`."""
    found = []
    for where, node in outside(root):
        if isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            full = [a.name for a in node.names if a.name != PACKAGE]
        else:
            continue
        found += [f"{where}: {name}" for name in full if name.startswith(PACKAGE)]
    return found


def test_nobody_asks_for_a_class_of_encoding(repo: Path) -> None:
    classes = encoding_classes(repo)
    assert {"Dense", "Blocked", "IntToken", "IntWeight", "Composed", "Outliers"} <= classes
    assert violations(repo, classes) == []


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(e, Dense)",
        "isinstance(e, int | dense.Dense)",
        "isinstance(e, (int, Dense))",
        "type(e) is Dense",
        "match e:\n    case Dense(dtype='f32'): pass",
    ],
)
def test_a_planted_question_is_found(tmp_path: Path, code: str) -> None:
    (tmp_path / "passes").mkdir()
    (tmp_path / "passes/a.py").write_text(code)
    assert [v.partition(": ")[2] for v in violations(tmp_path, {"Dense"})] == ["Dense"]


def test_nobody_imports_from_an_encoding(repo: Path) -> None:
    assert imports(repo) == []


@pytest.mark.parametrize(
    "code",
    [
        "from tilewright.ir.encodings.dense import GRAIN",
        "from tilewright.ir.encodings import dense",
        "from tilewright.ir import encodings",
        "import tilewright.ir.encodings.dense",
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, code: str) -> None:
    (tmp_path / "passes").mkdir()
    (tmp_path / "passes/a.py").write_text(code)
    assert len(imports(tmp_path)) == 1
    (tmp_path / "passes/a.py").write_text("import tilewright.ir.encodings")
    assert imports(tmp_path) == []
