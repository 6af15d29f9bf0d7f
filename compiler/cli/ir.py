"""`tilewright opt` and `tilewright exec`: IR text in, IR text or results out."""

from __future__ import annotations

from pathlib import Path

import click

from tilewright.cli.common import json_option, plugin_option, print_json, progress_bar, threads_option

#: what `opt` and `exec` read
EXPECTED = "IR as `tilewright dump` prints it"


@click.command("opt")
@click.argument(
    "file", metavar="FILE.ir", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@click.option(
    "--passes",
    default="",
    metavar="TEXT",
    help='The pipeline, such as "canonicalize, fuse{…}". Without it: parse and print.',
)
@click.option("--verify-each", is_flag=True, help="Verify the IR after every pass.")
@click.option(
    "--check-each",
    is_flag=True,
    help="Interpret the graph before and after every pass on random inputs, and compare.",
)
@click.option(
    "--print-ir-after",
    multiple=True,
    metavar="PASS",
    help="Print the IR after this pass, to stderr. Repeatable.",
)
@click.option("--print-ir-after-all", is_flag=True, help="Print the IR after every pass, to stderr.")
@click.option(
    "--explain", is_flag=True, help="Print which rewrites were made and why others were not, to stderr."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write here instead of standard output.",
)
@plugin_option
def opt_command(
    file: Path,
    passes: str,
    verify_each: bool,
    check_each: bool,
    print_ir_after: tuple[str, ...],
    print_ir_after_all: bool,
    explain: bool,
    output: Path | None,
) -> None:
    """Run passes on IR text and print the result."""
    from tilewright.tools.ir_text import optimize
    from tilewright.user_files import read_stdin, read_text

    text = read_stdin(EXPECTED) if str(file) == "-" else read_text(file, EXPECTED)
    result = optimize(
        text, passes, file=str(file), verify_each=verify_each, check_each=check_each,
        print_after=("*",) if print_ir_after_all else print_ir_after, explain=explain,
        log=lambda line: click.echo(line, err=True),
    )  # fmt: skip
    if output:
        output.write_text(result, "utf-8")
    else:
        click.echo(result, nl=False)


@click.command("exec")
@click.argument("file", metavar="FILE.ir", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=FILE.npy",
    help="An input array; other inputs are random. Repeatable.",
)
@click.option("--set", "sizes", multiple=True, metavar="SYMBOL=N", help="Value of a symbol. Repeatable.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Instruction set to compile for; default: the best here. Repeatable.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed for random inputs.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write each result as NAME.npy here.",
)
@threads_option
@plugin_option
@json_option
def exec_command(
    file: Path,
    inputs: tuple[str, ...],
    sizes: tuple[str, ...],
    targets: tuple[str, ...],
    seed: int,
    output: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run a graph or tile program given as text: interpreted and compiled, on given or random inputs, and
    compare."""
    given = {name: Path(path) for name, path in (split_pair(x, "--input", "NAME=FILE.npy") for x in inputs)}
    symbols = {name: number(n, x) for x in sizes for name, n in [split_pair(x, "--set", "SYMBOL=N")]}
    from tilewright.tools.ir_text import execute
    from tilewright.user_files import read_text

    text = read_text(file, EXPECTED)
    with progress_bar(as_json) as progress:
        progress("interpret, compile and compare", 0, 0)
        report = execute(
            text, file=str(file), inputs=given, symbols=symbols, targets=targets, seed=seed,
            threads=threads, output=output,
        )  # fmt: skip
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(report.render())
    if not report.agree:
        raise click.exceptions.Exit(1)


def split_pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, eq, value = text.partition("=")
    if not (name and eq and value):
        raise click.UsageError(f"{option} {text}: expected {form}")
    return name.lstrip("%"), value


def number(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise click.UsageError(f"--set {whole}: expected SYMBOL=N with N an integer")
    return int(text)
