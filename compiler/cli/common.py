"""What several commands share: JSON output, plugins, progress bars, option types."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from tilewright.runtime.files import check_regular

F = TypeVar("F", bound=Callable[..., object])
#: told by long work: what is being done, how much is done, how much there is
Progress = Callable[[str, int, int], None]

json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Number of threads; default: the processors that this process may use.",
)
cache_option = click.option(
    "--cache",
    metavar="POLICY",
    help="Which tokens the KV cache keeps, such as window(recent=512), instead of the policy that the "
    "artifact was compiled with.",
)


def plugin_option(f: F) -> F:
    """`--plugin FILE.py`, repeatable: run before the command, to register encodings, ops, cache policies."""
    text = "Python file to run first, with user-defined encodings, ops and cache policies. Repeatable."
    return click.option(
        "--plugin", "plugins", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
        expose_value=False, is_eager=True, callback=_load_plugins, help=text,
    )(f)  # fmt: skip


def _load_plugins(ctx: click.Context, param: click.Parameter, paths: tuple[Path, ...]) -> None:
    for path in paths:
        load_plugin(path)


def load_plugin(path: Path) -> None:
    """Run the file as a module, once per process."""
    name = f"tilewright_plugin_{path.stem}_{abs(hash(str(path.resolve()))):x}"
    if name in sys.modules:
        return
    try:
        check_regular(path)
    except OSError as e:
        raise click.UsageError(f"--plugin {path}: {e.strerror}") from None
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise click.UsageError(f"--plugin {path}: expected a Python file, FILE.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        del sys.modules[name]
        raise click.UsageError(f"--plugin {path}: {type(e).__name__}: {e}") from e


if TYPE_CHECKING:
    _IntType = click.ParamType[int]
else:
    _IntType = click.ParamType  # not generic in click 8.1


class Bytes(_IntType):
    """`2GB`, `1500MB`, `4e9`: a number of bytes."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([kmgt]?i?)b?\s*", str(value).lower())
        try:
            number = float(match[1]) if match else 0.0
        except ValueError:
            number = 0.0
        if match is None or not 0 < number < 1e18:
            self.fail(f"{value!r} is not a size; write 2GB or 1500MB", param, ctx)
        base = 1024 if match[2].endswith("i") else 1000
        return int(number * base ** ("kmgt".find(match[2][:1]) + 1 if match[2] else 0))


def calibration_options(f: F) -> F:
    """Calibration samples for solvers such as gptq, and how much of it."""
    options = (
        click.option(
            "--calibrate", type=click.Path(path_type=Path), metavar="FILE",
            help="Calibration samples for solvers such as gptq: a text, or token ids in an .npy or "
                 ".safetensors file.",
        ),
        click.option("--samples", default=128, show_default=True, type=click.IntRange(1),
        help=
        "Maximum number of samples."),
        click.option("--sample-tokens", default=512, show_default=True, type=click.IntRange(2),
        help="Tokens per sample."),
        click.option("--max-ram", type=Bytes(), default=0, metavar="SIZE",
        help=
        "Refuse to calibrate if more memory would be needed, such as 2GB."),
        click.option(
            "--work", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
            help="Folder for solved weights: an interrupted run continues where it stopped.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        f = option(f)
    return f


def recall_options(f: F) -> F:
    """`eval --recall`: what questions are asked, and how many."""
    options = (
        click.option("--recall", "recall_only", is_flag=True,
            help="Ask for facts at a distance instead of measuring perplexity: how many answers are exact."),
        click.option("--distance", "distances", multiple=True, type=click.IntRange(32), metavar="N",
            help="With --recall: tokens from fact to question. Repeatable; default: 128, 512, 1024, 2048 and "
                 "3500, as far as the context allows."),
        click.option("--others", default=31, show_default=True, type=click.IntRange(0, 39),
            help="With --recall: other facts in between."),
        click.option("--count", default=32, show_default=True, type=click.IntRange(1),
            help="With --recall: questions per distance."),
        click.option("--seed", default=0, show_default=True, type=click.IntRange(0),
            help="With --recall: the same seed asks the same questions."),
        click.option("--ask", default="with", show_default=True, type=click.Choice(("with", "after")),
            help="With --recall: put the question into the prompt, or ask it when the prompt is complete."),
    )  # fmt: skip
    for option in reversed(options):
        f = option(f)
    return f


def argument(text: str, option: str) -> str:
    """An argument as the UTF-8 text that its bytes are, whatever the locale; UsageError if they are none."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        raise click.UsageError(f"{option}: is not UTF-8 text: {text!r}") from None


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Progress]:
    """A bar on stderr while long work runs; lines where stderr is not a terminal, the first one at once."""
    if quiet:
        yield lambda what, done, total: None
        return
    if not sys.stderr.isatty():
        yield ProgressLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    share, left = TextColumn("{task.percentage:>3.0f}%"), TextColumn("left")
    columns = (
        TextColumn("{task.description:36.36}"),
        BarColumn(),
        share,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        left,
    )
    # steps differ in length, so the time left is estimated from many of them
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=600) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total or None
        )


class ProgressLines:
    """Progress as lines of text: one for each kind of work when it begins, then one every `every` seconds."""

    def __init__(self, every: float = 10.0) -> None:
        self.every = every
        self.said: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        kind = re.sub(
            r"[\d.]+", "", what
        )  # weights and layers that differ in their number are one kind of work
        if now - self.said.get(kind, -self.every) < self.every:
            return
        self.said[kind] = now
        click.echo(f"{what} …" + (f" {done} of {total}" if total > 1 else ""), err=True)


def human_bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} TB"


def table(rows: list[tuple[str, ...]], indent: str = "  ") -> str:
    """Columns aligned, the last one free."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]) - 1)] if rows else []
    return "\n".join(
        indent + "  ".join([*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[-1]]) for r in rows
    )
