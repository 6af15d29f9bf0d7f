"""What the first compile of a model takes: nothing in the cache, a new process, wall time and processor time.

In: recipes, a model or a shape, maybe another commit of this repository. Out: a table of medians of
interleaved runs. Usage: `python benchmarks/first_compile.py [--shape 1b] [--recipes w4a8] [--against
COMMIT]`. Processor time counts the C++ compiler's processes; it says more than wall time where the machine is
not idle.
"""

from __future__ import annotations

import argparse
import compileall
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoint import SHAPES, write_checkpoint

ROOT = Path(__file__).resolve().parent.parent
#: import names of the folders at the repository's root
FOLDERS = {"": "compiler", "ir": "ir", "passes": "passes", "backends": "backends", "runtime": "runtime"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "models" / "tiny-llama")
    parser.add_argument("--shape", choices=list(SHAPES), help="a random checkpoint of this shape instead")
    parser.add_argument("--recipes", default="bf16,w4a8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", metavar="COMMIT", help="run this commit in turn, and print the ratio")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, _trees(args.against, Path(work)) as trees:
        model = args.model
        if args.shape:
            model = Path(work) / "model"
            write_checkpoint(SHAPES[args.shape], model)
        print("| recipe | seconds | processor seconds |" + (" before | before |" if len(trees) > 1 else ""))
        print("|---|---|---|" + ("---|---|" if len(trees) > 1 else ""))
        for recipe in args.recipes.split(","):
            runs = [[once(tree, model, recipe) for tree in trees] for _ in range(args.repeats)]
            cells = [
                f"{statistics.median(r[t][k] for r in runs):.1f}" for t in range(len(trees)) for k in (0, 1)
            ]
            print(f"| {recipe} | {' | '.join(cells)} |", flush=True)


def once(tree: Path, model: Path, recipe: str) -> tuple[float, float]:
    """Seconds and processor seconds of one compile by the sources in `tree`, with a fresh cache."""
    with tempfile.TemporaryDirectory() as folder:
        env = {
            **os.environ,
            "TILEWRIGHT_CACHE": f"{folder}/cache",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(tree),
        }
        output = ["-o", f"{folder}/m.tw", "--recipe", recipe]
        command = [sys.executable, "-m", "tilewright", "compile", str(model), *output]
        before, began = _children(), time.perf_counter()
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - began, _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _trees(commit: str | None, work: Path) -> Iterator[list[Path]]:
    """Folders that hold `tilewright` as packages: of this checkout, and of the commit."""
    sources = [ROOT]
    if commit:
        other = work / "commit"
        subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", str(other), commit], check=True
        )
        sources.append(other)
    trees = []
    for n, source in enumerate(sources):
        package = work / f"tree{n}" / "tilewright"
        package.mkdir(parents=True)
        for name, folder in FOLDERS.items():
            for entry in [source / folder] if name else (source / folder).iterdir():
                if entry.name != "__pycache__":
                    (package / entry.name).symlink_to(entry)
        trees.append(package.parent)
        compileall.compile_dir(package, quiet=2)  # byte code is not what is measured
    try:
        yield trees
    finally:
        if commit:
            subprocess.run(
                ["git", "-C", str(ROOT), "worktree", "remove", "--force", str(work / "commit")], check=True
            )


if __name__ == "__main__":
    main()
