"""No module imports itself through others, neither at load time nor inside functions or under TYPE_CHECKING.

Read from the source by `ast`. The edge from a module to the packages it lies in is left out: loading
`tilewright.ir.types` runs `tilewright/__init__.py` first, whatever either of them imports.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

#: folder -> the package it is
FOLDERS = {
    "ir": "tilewright.ir",
    "passes": "tilewright.passes",
    "backends": "tilewright.backends",
    "compiler": "tilewright",
    "runtime": "tilewright.runtime",
}
#: circles that stay, each as its modules in alphabetical order, with the reason
LISTED: Mapping[tuple[str, ...], str] = {
    (
        "tilewright.passes.lower.emit",
        "tilewright.passes.lower.job",
        "tilewright.passes.lower.record",
        "tilewright.passes.lower.regions",
    ): "a lowering record annotates its functions with the emitter and the job, which look records up",
}

Edges = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Every module of ours by dotted name; a package is its `__init__`."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of every import, wherever it stands; the name is empty for `import a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((a.name, "") for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, a.name) for a in node.names)


def edges(root: Path) -> Edges:
    """For every module the modules that it imports, packages around it left out."""
    known = modules(root)
    out: Edges = {}
    for name, path in known.items():
        targets = set()
        for module, attribute in imported(ast.parse(path.read_text())):
            whole = f"{module}.{attribute}"
            targets.add(whole if whole in known else module)
        out[name] = {t for t in targets if t in known and not f"{name}.".startswith(f"{t}.")}
    return out


def circles(graph: Edges) -> list[tuple[str, ...]]:
    """Sets of modules that reach each other, by name."""
    reach = {m: reached(graph, m) for m in graph}
    found = {tuple(sorted({m, *(o for o in reach[m] if m in reach[o])})) for m in graph if m in reach[m]}
    return sorted(found)


def reached(graph: Edges, start: str) -> set[str]:
    """Every module that imports lead to from `start`."""
    seen: set[str] = set()
    left = list(graph[start])
    while left:
        m = left.pop()
        if m not in seen:
            seen.add(m)
            left += graph[m]
    return seen


def test_no_import_circles(repo: Path) -> None:
    found = circles(edges(repo))
    assert [c for c in found if c not in LISTED] == []
    assert [c for c in LISTED if c not in found] == [], (
        "these are no circles any more: take them off the list"
    )


@pytest.mark.parametrize(
    "second",
    [
        "from tilewright.ir.a import f",
        "import tilewright.ir.a",
        "from tilewright.ir import a",
        "def g():\n    from tilewright.ir.a import f",
        "if TYPE_CHECKING:\n    from tilewright.ir.a import f",
    ],
)
def test_a_planted_circle_is_found(tmp_path: Path, second: str) -> None:
    (tmp_path / "ir").mkdir()
    (tmp_path / "ir/__init__.py").write_text("from tilewright.ir.a import f")
    (tmp_path / "ir/a.py").write_text("from tilewright.ir.b import g")
    (tmp_path / "ir/b.py").write_text(second)
    (tmp_path / "ir/c.py").write_text("import tilewright.ir.a\nimport numpy")
    assert circles(edges(tmp_path)) == [("tilewright.ir.a", "tilewright.ir.b")]
