"""The layering: each folder imports only what `ALLOWED` lists, the runtime only itself and five libraries.

Read from the source by `ast`, imports inside functions and under TYPE_CHECKING included, then shown in fresh
processes.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Folder -> folders of ours that it may import. `compiler` is the package `tilewright` itself.
ALLOWED = {
    "ir": {"ir"},
    "backends": {"ir", "backends", "runtime"},
    "passes": {"ir", "backends", "passes"},
    "compiler": {"ir", "passes", "backends", "compiler", "runtime"},
    "runtime": {"runtime"},
}
RUNTIME_LIBRARIES = {"numpy", "tokenizers", "jinja2", "click", "rich", "PIL"}
#: folders of single backends, which only `backends/` itself names
BACKENDS = ("cpp", "triton")
HEAVY = ("torch", "transformers", "lark", "sympy")


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a module of `package`, `import_module("…")` with a literal
    included."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, a.name) for a in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = ".".join(package.split(".")[: len(package.split(".")) - level + 1]) if level else ""
                start = ".".join(p for p in (base, module) if p)
                yield from ((node.lineno, f"{start}.{a.name}") for a in names)
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
                if getattr(func, "attr", getattr(func, "id", "")) in ("import_module", "__import__"):
                    yield node.lineno, name


def violation(folder: str, name: str) -> str | None:
    """Why a module of `folder` may not import `name`, or None."""
    top, *rest = name.split(".")
    if top in ALLOWED:
        return f"bare import of {name}; write tilewright.{name}"
    if top == "tilewright":
        target = rest[0] if rest and rest[0] in ALLOWED else "compiler"
        if (
            folder in ("passes", "compiler")
            and rest[:1] == ["backends"]
            and rest[1:2]
            and rest[1] in BACKENDS
        ):
            return f"{folder}/ may not import {name} (one backend of several); ask backends.registry"
        return None if target in ALLOWED[folder] else f"{folder}/ may not import {name} ({target}/)"
    if folder == "runtime" and top not in RUNTIME_LIBRARIES | set(sys.stdlib_module_names):
        return (
            f"runtime/ may not import {name}; only {', '.join(sorted(RUNTIME_LIBRARIES))} and the "
            "standard library"
        )
    return None


def violations(root: Path) -> list[str]:
    found = []
    for folder in ALLOWED:
        for path in sorted((root / folder).rglob("*.py")):
            inner = path.relative_to(root / folder).parent.parts
            package = ".".join(("tilewright", *(() if folder == "compiler" else (folder,)), *inner))
            for line, name in imported(ast.parse(path.read_text()), package):
                if why := violation(folder, name):
                    found.append(f"{path.relative_to(root)}:{line}: {why}")
    return found


def test_imports_follow_the_layering(repo: Path) -> None:
    assert violations(repo) == []


@pytest.mark.parametrize(
    ("path", "text", "why"),
    [
        (
            "ir/a.py",
            "from tilewright.passes.fuse import f",
            "ir/ may not import tilewright.passes.fuse.f (passes/)",
        ),
        (
            "ir/ops/a.py",
            "def f():\n    from tilewright import compile",
            "ir/ may not import tilewright.compile (compiler/)",
        ),
        ("ir/ops/a.py", "from ...passes import f", "ir/ may not import tilewright.passes.f (passes/)"),
        ("ir/a.py", "from tilewright import runtime", "ir/ may not import tilewright.runtime (runtime/)"),
        (
            "passes/a.py",
            "if T:\n    import tilewright.backends.cpp",
            "passes/ may not import tilewright.backends.cpp (one b",
        ),
        (
            "compiler/a.py",
            "def f():\n    from tilewright.backends.triton.render import x",
            "compiler/ may not import tilewright.backends.triton.render.x (one backend of several)",
        ),
        (
            "backends/a.py",
            "importlib.import_module('tilewright.api')",
            "backends/ may not import tilewright.api (compiler/)",
        ),
        ("compiler/a.py", "import ir.tile", "bare import of ir.tile; write tilewright.ir.tile"),
        ("runtime/a.py", "import tilewright.ir.types", "runtime/ may not import tilewright.ir.types (ir/)"),
        (
            "runtime/a.py",
            "def f():\n    import torch.nn",
            "runtime/ may not import torch.nn; only PIL, click, jinja2, numpy",
        ),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, path: str, text: str, why: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    [found] = violations(tmp_path)
    assert found.startswith(f"{path}:{text.count(chr(10)) + 1}: {why}")


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `statement`."""
    code = (
        f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        "import tilewright",
        "import tilewright.runtime",
        "import tilewright.cli.app",
        "import tilewright as tw; dir(tw); tw.load",
    ],
)
def test_importing_the_package_is_light(statement: str) -> None:
    assert modules_after(statement).isdisjoint(HEAVY)


def test_every_runtime_module_is_free_of_the_compiler(repo: Path) -> None:
    names = [
        ".".join(("tilewright", *p.relative_to(repo).with_suffix("").parts))
        for p in (repo / "runtime").rglob("*.py")
    ]
    loaded = modules_after("\n".join(f"import {n.removesuffix('.__init__')}" for n in sorted(names)))
    assert "tilewright" in loaded and loaded.isdisjoint(HEAVY)
