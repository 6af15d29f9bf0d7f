"""Which kernels a change changes: `python tests/kernel_diff.py [--against COMMIT] [--all] [--only NAME]`.

Compiles the example models, small models of the tests' families and a set of plain modules with a stand-in
for the C++ compiler that keeps every source it is given. The sources of this checkout are compared, text by
text, with those of a commit (default: main). A refactoring shows no difference; exits with 1 where there is
one. What a commit gave is kept under build/kernel_diff.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: import names of the folders at the repository's root
FOLDERS = {"": "compiler", "ir": "ir", "passes": "passes", "backends": "backends", "runtime": "runtime"}
#: keeps sources that it is asked to compile, writes empty objects, and links an empty library
STAND_IN = """#!/bin/sh
case "$*" in *--version*) echo "kernel diff 1.0"; exit 0;; esac
out=; before=; link=
for a in "$@"; do
  [ "$before" = -o ] && out=$a
  [ "$a" = -shared ] && link=1
  case $a in *.cpp) cp "$a" "$TW_KERNELS/$$.cpp";; esac
  before=$a
done
: > "$out"
[ -z "$link" ] || exec cc -shared -x c /dev/null -o "$out"
"""
#: recipes of the example model; of the families
RECIPES = ("f32", "bf16", "w8a8", "w4a8")
FAMILIES = {"llama": ("bf16", "w4a8"), "gemma2": ("bf16", "w8a8"), "mixtral": ("f32", "w4a8")}
_FUNCTION = re.compile(r'extern "C" (?:__attribute__\(\(.*?\)\) )?\w+ (\w+)\(')
_UNSAID = re.compile(r" *//.*|^#define TW_ID .*", re.M)
_SHOWN = 40


# ------------------------------------------------------------------ what a tree compiles
def dump(out: Path, every: bool, only: str) -> None:
    """Compile everything with the `tilewright` that this process imports; sources go below `out`."""
    for name, compile_it in cases(every):
        if only in name:
            folder = out / name
            folder.mkdir(parents=True)
            os.environ["TW_KERNELS"] = str(folder)
            began = time.process_time()
            with tempfile.TemporaryDirectory() as work:
                compile_it(Path(work))
            _named(folder)
            # what was compiled for one case is compiled again for the next
            shutil.rmtree(Path(os.environ["TILEWRIGHT_CACHE"]) / "objects", ignore_errors=True)
            print(f"{name}: {time.process_time() - began:.1f} s", file=sys.stderr, flush=True)


def cases(every: bool) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """(name, function that compiles it in a folder)"""
    import tilewright as tw

    def model(directory: Path, recipe: str) -> Callable[[Path], object]:
        return lambda work: tw.compile(directory, recipe=recipe, target="avx512").save(work / "m.tw")

    for recipe in RECIPES:
        yield f"tiny-llama-{recipe}", model(Path("examples/models/tiny-llama"), recipe)
    yield "small-llama-w4a8", model(Path("examples/models/small-llama"), "w4a8")
    sys.path[:0] = ["tests/compiler", "."]
    import families

    def family(name: str, recipe: str) -> Callable[[Path], object]:
        return lambda work: tw.compile(
            families.write_model(work / name, name), recipe=recipe, target="avx512"
        ).save(work / "m.tw")

    for name in families.FAMILIES if every else FAMILIES:
        for recipe in FAMILIES.get(name, ("bf16",)):
            yield f"{name}-{recipe}", family(name, recipe)
    for name, (module, inputs) in plain_modules().items():
        yield (
            f"plain-{name}",
            lambda work, m=module, i=inputs: tw.compile(m, example_inputs=i, target="avx512").save(
                work / "m.tw"
            ),
        )


def plain_modules() -> dict[str, tuple[object, tuple[object, ...]]]:
    """Small modules that between them ask for every template of the lowering."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Of(nn.Module):
        def __init__(self, fn: object, **parts: nn.Module) -> None:
            super().__init__()
            self.fn = fn
            for name, part in parts.items():
                self.add_module(name, part)

        def forward(self, *x: torch.Tensor) -> object:
            return self.fn(self, *x)

    torch.manual_seed(0)
    r = torch.randn
    ids = torch.arange(6).reshape(2, 3)
    return {
        "mlp": (
            Of(lambda m, x: m.b(F.gelu(m.a(x))) + x, a=nn.Linear(32, 48), b=nn.Linear(48, 32)),
            (r(4, 32),),
        ),
        "gated": (
            Of(lambda m, x: F.silu(m.a(x)) * m.b(x), a=nn.Linear(32, 48), b=nn.Linear(32, 48)),
            (r(2, 3, 32),),
        ),
        "norms": (
            Of(lambda m, x: (m.n(x), x.softmax(-1), x.log_softmax(-1), x / x.norm()), n=nn.LayerNorm(24)),
            (r(5, 24),),
        ),
        "reductions": (
            Of(
                lambda m, x: (
                    x.sum(),
                    x.mean(-1),
                    x.amax(0),
                    x.argmax(-1),
                    x.prod(1),
                    x.var(-1),
                    x.cumsum(-1),
                )
            ),
            (r(6, 7),),
        ),
        "views": (
            Of(
                lambda m, x: (
                    x.transpose(0, 1) + 1,
                    torch.cat([x, x * 2], -1),
                    x[:, 1::2] - 1,
                    x.reshape(3, -1) * 2,
                )
            ),
            (r(6, 8),),
        ),
        "gather": (
            Of(
                lambda m, i: (m.e(i), m.e(i).topk(2)[0], torch.zeros(2, 9).scatter(1, i, 1.0)),
                e=nn.Embedding(9, 16),
            ),
            (ids,),
        ),
        "attention": (
            Of(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v)),
            (r(1, 2, 8, 16), r(1, 2, 8, 16), r(1, 2, 8, 16)),
        ),
        "matmul": (
            Of(lambda m, a, b: (a @ b, torch.einsum("bij,bjk->bik", a, b).relu())),
            (r(2, 5, 6), r(2, 6, 7)),
        ),
        "integers": (Of(lambda m, i: (i.sum(), i * 3 // 2, i.float().mean(), (i > 2).any())), (ids,)),
    }


def _named(folder: Path) -> None:
    """Give every kept source the name of the function it defines."""
    texts = {path: path.read_text("utf-8") for path in folder.glob("*.cpp")}
    for path, text in sorted(texts.items(), key=lambda item: _UNSAID.sub("", item[1])):
        found = _FUNCTION.search(text)
        base, n = found[1] if found else "other", 0
        while (to := folder / f"{base}{f'.{n}' if n else ''}.txt").exists():
            n += 1
        path.rename(to)


# ------------------------------------------------------------------ two trees
def sources_of(root: Path, out: Path, every: bool, only: str) -> Path:
    """The sources that the checkout in `root` gives, below `out`."""
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        package = work / "tree" / "tilewright"
        package.mkdir(parents=True)
        for name, part in FOLDERS.items():
            for entry in [root / part] if name else (root / part).iterdir():
                if entry.name != "__pycache__":
                    (package / entry.name).symlink_to(entry)
        stand_in = work / "c++"
        stand_in.write_text(STAND_IN)
        stand_in.chmod(0o755)
        made = work / "out"
        env = {
            **os.environ,
            "PYTHONPATH": str(work / "tree"),
            "CXX": str(stand_in),
            "TILEWRIGHT_CACHE": f"{work}/cache",
            "HF_HUB_OFFLINE": "1",
        }
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--dump",
            str(made),
            "--only",
            only,
            *(["--all"] if every else []),
        ]
        done = subprocess.run(command, cwd=root, env=env, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f"{root}: {done.stderr[-3000:]}")
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(made, out)
    return out


def sources_at(commit: str, every: bool, only: str) -> Path:
    """The same for a commit, kept."""
    name = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=12", commit],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    folder = ROOT / "build" / "kernel_diff"
    out = folder / f"{name}{'-all' if every else ''}{'-' + only if only else ''}"
    whole = folder / f"{name}{'-all' if every else ''}"
    if whole.exists():
        return whole
    if not out.exists():
        tree = out.parent / f"tree-{os.getpid()}"
        out.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", str(tree), name], check=True
        )
        try:
            sources_of(tree, out, every, only)
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)
    return out


def compare(before: Path, after: Path, only: str = "") -> int:
    """Print what differs; the number of sources that do."""
    old, new = ({n: t for n, t in _texts(f).items() if only in n.split("/")[0]} for f in (before, after))
    differing = sorted(n for n in old.keys() | new.keys() if old.get(n) != new.get(n))
    for name in differing:
        a, b = old.get(name, ""), new.get(name, "")
        lines = list(
            difflib.unified_diff(a.splitlines(), b.splitlines(), "before", "after", lineterm="", n=1)
        )
        print(f"== {name}: {'new' if not a else 'gone' if not b else f'{len(lines)} lines of difference'}")
        if a and b:
            print("\n".join(lines[:_SHOWN]))
    print(f"{len(new)} sources, {len(differing)} differ")
    return len(differing)


def _texts(folder: Path) -> dict[str, str]:
    """Sources by name, without comments (they hold names of values) and the identity of the program. Those of
    one name are told apart by their text: which was compiled first says nothing."""
    found: dict[str, list[str]] = {}
    for p in folder.rglob("*.txt"):
        name = str(p.relative_to(folder)).removesuffix(".txt")
        found.setdefault(re.sub(r"\.\d+$", "", name), []).append(_UNSAID.sub("", p.read_text("utf-8")))
    return {
        f"{name}{f'.{n}' if n else ''}": text
        for name, texts in sorted(found.items())
        for n, text in enumerate(sorted(texts))
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="COMMIT", default="main", help="default: main")
    parser.add_argument("--all", action="store_true", help="every family, not three of them")
    parser.add_argument("--only", metavar="TEXT", default="", help="cases whose name holds this")
    parser.add_argument(
        "--dump", type=Path, metavar="FOLDER", help="write the sources of the importable tree"
    )
    args = parser.parse_args()
    if args.dump:
        dump(args.dump, args.all, args.only)
        return 0
    before = sources_at(args.against, args.all, args.only)
    with tempfile.TemporaryDirectory() as folder:
        return bool(compare(before, sources_of(ROOT, Path(folder) / "here", args.all, args.only), args.only))


if __name__ == "__main__":
    sys.exit(main())
