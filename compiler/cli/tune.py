"""`tilewright tune`: measure schedules of a model's contractions, and keep those that win.

In: a checkpoint directory and a recipe. Out: a tuning file for `compile --tuning`, a table. Independent of
how kernels are made.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tilewright.cli.common import json_option, print_json, progress_bar, table

if TYPE_CHECKING:
    from tilewright.tools.tune import Choice


@click.command("tune")
@click.argument("model", metavar="DIR")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Tuning file to write; an existing file is extended.",
)
@click.option("--recipe", help="A recipe by name, or a TOML file.")
@click.option("--weights", metavar="ENC", help="Encoding of the weights, instead of the recipe's.")
@click.option("--activations", metavar="ENC", help="Encoding of activations, instead of the recipe's.")
@click.option("--target", default="native", show_default=True, help="A CPU level that this machine supports.")
@click.option(
    "--rows", default="1,4,16,64,512", show_default=True, help="Row counts to tune for, comma-separated."
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Number of threads per measurement; default: all cores."
)
@click.option(
    "--candidates",
    default=12,
    show_default=True,
    type=click.IntRange(2, 200),
    help="Schedules to measure per kernel.",
)
@click.option(
    "--seconds", default=600.0, show_default=True, type=click.FloatRange(1), help="Time limit of the search."
)
@click.option("--kernels", default="", metavar="TEXT", help="Only kernels whose name contains this.")
@json_option
def tune_command(
    model: str, output: Path, recipe: str | None, weights: str | None, activations: str | None, target: str,
    rows: str,
    threads: int | None, candidates: int, seconds: float, kernels: str, as_json: bool,
) -> None:  # fmt: skip
    """Find the fastest schedules of the model in DIR on this machine. Results of the model stay
    bit-identical.
    """
    from tilewright import api
    from tilewright.backends.registry import chosen
    from tilewright.runtime.cpu import cpu_name, default_threads
    from tilewright.tools.tune import by_kernel, tune
    from tilewright.tools.tuning_file import write_tuning

    counts = _counts(rows)
    level = chosen(target)[1][-1]
    with progress_bar() as progress:
        compiled = api.compile(
            model, recipe=recipe, weights=weights, activations=activations, target=level, progress=progress
        )
        found = tune(
            compiled.program, level, counts, threads=threads or default_threads(), most=candidates,
            seconds=seconds,
            only=kernels, progress=progress,
        )  # fmt: skip
    changed = write_tuning(output, by_kernel(found, level, compiled.program), level, cpu_name())
    if as_json:
        print_json(
            {"output": str(output), "level": level, "kernels": changed, "choices": [_entry(c) for c in found]}
        )
        return
    lines: list[tuple[str, ...]] = [("kernel", "rows", "default", "best", "gain", "model's rank", "schedule")]
    for c in found:
        sizes = " ".join(f"{n}={v}" for n, v in c.best.schedule.sizes)
        base, best = ((f"{1e6 * t.seconds:,.1f} us" if t.seconds else "-") for t in (c.trials[0], c.best))
        lines.append((c.kernel, str(c.rows), base, best, f"{c.gain:.2f} x", str(_rank(c)), sizes))
    click.echo(table(lines))
    click.echo(
        f"{output}: schedules for {changed} kernels at {level}; use it with: tilewright compile {model} "
        f"--tuning {output}"
    )


def _counts(text: str) -> list[int]:
    try:
        counts = [int(x) for x in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise click.BadParameter(
            f"expected numbers of rows such as 1,16,512, got {text!r}", param_hint="--rows"
        )
    return counts


def _rank(c: Choice) -> int:
    """Where the cost model had put the winner, from 1."""
    return 1 + sorted(c.trials, key=lambda t: t.predicted).index(c.best)


def _entry(c: Choice) -> dict[str, object]:
    trials = [
        {"sizes": dict(t.schedule.sizes), "predicted": t.predicted, "seconds": t.seconds} for t in c.trials
    ]
    return {
        "kernel": c.kernel,
        "rows": c.rows,
        "gain": round(c.gain, 4),
        "best": dict(c.best.schedule.sizes),
        "trials": trials,
    }
