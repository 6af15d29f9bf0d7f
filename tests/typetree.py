"""Strict mypy over the project: `python tests/typetree.py [--root DIR] [--out DIR]`; exits as mypy does.

The folders' import names are not their places (`compiler/` is `tilewright`, `ir/` is `tilewright.ir`), which
mypy cannot map. So a tree of links is laid under `build/typetree`, where they agree; what mypy reports there
is printed with the real places.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

FOLDERS = ("ir", "passes", "backends", "runtime")
HERE = Path(__file__).resolve().parent.parent


def lay(root: Path, out: Path) -> None:
    """Make `out/tilewright` a package whose parts link into `root`."""
    shutil.rmtree(out, ignore_errors=True)
    package = out / "tilewright"
    package.mkdir(parents=True)
    for part in sorted((root / "compiler").iterdir()):
        if part.name != "__pycache__":
            (package / part.name).symlink_to(part.resolve())
    for name in FOLDERS:
        (package / name).symlink_to((root / name).resolve())


def check(root: Path, out: Path, cache: Path) -> tuple[int, str]:
    """mypy's exit status and report, its paths relative to `root`."""
    lay(root, out)
    options = [
        "--config-file",
        str(root / "pyproject.toml"),
        "--cache-dir",
        str(cache),
        "--no-error-summary",
        "-p",
        "tilewright",
    ]
    done = subprocess.run([sys.executable, "-m", "mypy", *options], cwd=out, capture_output=True, text=True)
    return done.returncode, "".join(
        _real(line) for line in (done.stdout + done.stderr).splitlines(keepends=True)
    )


def _real(line: str) -> str:
    if not line.startswith("tilewright/"):
        return line
    inner = line.removeprefix("tilewright/")
    return inner if inner.split("/")[0] in FOLDERS else f"compiler/{inner}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Strict mypy over the project")
    parser.add_argument("--root", type=Path, default=HERE, help="the repository, or a copy of it")
    parser.add_argument(
        "--out", type=Path, default=HERE / "build" / "typetree", help="where the tree of links is laid"
    )
    parser.add_argument("--cache", type=Path, default=HERE / "build" / "mypy", help="mypy's cache")
    args = parser.parse_args()
    status, report = check(args.root.resolve(), args.out.resolve(), args.cache.resolve())
    print(report or "no type errors", end="" if report else "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
