"""The command line: `tilewright COMMAND`. Commands load on use, so that `--help` is instant.

In: arguments. Out: exit code 0, 1 (an error, told as one block: what, where, what to do) or 2 (wrong usage).
Independent of what the commands do.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import logging
import os
import sys
import threading
import warnings
from importlib import import_module
from typing import NoReturn

import click

from tilewright.ir.errors import TilewrightWarning
from tilewright.packages import missing

#: command -> (module:attribute, one line of help); the order of `--help`
COMMANDS = {
    "compile": ("tilewright.cli.compile:compile_command",
    "Compile a Hugging Face checkpoint directory into an artifact."),
    "run": ("tilewright.cli.run:run_command",
    "Generate text with a compiled model, or answer texts and images."),
    "inspect": ("tilewright.cli.inspect:inspect_command",
    "Show the contents of an artifact, without executing its code."),
    "dump": ("tilewright.cli.compile:dump_command", "Print the IR of any stage, or the source."),
    "opt": ("tilewright.cli.ir:opt_command", "Run passes on IR text."),
    "exec": ("tilewright.cli.ir:exec_command",
    "Run IR text, interpreted and compiled, and compare the results."),
    "eval": ("tilewright.cli.evaluate:eval_command",
    "Measure perplexity on a text, and the difference from the PyTorch model."),
    "tune": ("tilewright.cli.tune:tune_command",
    "Measure schedules on this machine and write the fastest ones."),
    "bench": ("tilewright.cli.evaluate:bench_command",
    "Measure speed relative to the limits of this machine."),
    "doctor": ("tilewright.cli.doctor:doctor_command",
    "Show what this machine has, what is missing, and how to install it."),
}  # fmt: skip


class Commands(click.Group):
    """Commands by name from the table; a wrong name is answered with the nearest right one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        found: click.Command = getattr(import_module(module), attribute)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Commands: {', '.join(COMMANDS)}."
            raise click.UsageError(f"no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the Python traceback of an error (any command takes it).")
@click.version_option(package_name="tilewright", message="tilewright %(version)s")
def cli(debug: bool) -> None:
    """Compile PyTorch models to small, fast programs, and run them."""


def main(args: list[str] | None = None) -> None:
    """Entry point. `--debug` may appear anywhere."""
    given = list(sys.argv[1:] if args is None else args)
    code = run([a for a in given if a != "--debug"], "--debug" in given)
    if args is None and "torch" in sys.modules:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End the process once everything is written and every thread and exit handler is done, without taking
    PyTorch's modules apart object by object, which takes more than a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def run(args: list[str], debug: bool = False) -> int:
    """The exit code of one call."""
    if debug:
        return _outcome(args, debug)
    with warnings.catch_warnings():
        _only_our_warnings()
        try:
            return _outcome(args, debug)
        finally:
            logging.disable(logging.NOTSET)


def _outcome(args: list[str], debug: bool) -> int:
    try:
        code = cli.main(args, prog_name="tilewright", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.ClickException as e:
        e.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("\ninterrupted", err=True)
        return 130
    except BrokenPipeError:  # the reader of our output has gone: `… | head`
        sys.stderr.close()
        return 1
    except Exception as e:
        if debug:
            raise
        click.echo(error_block(e), err=True)
        return 1


def _only_our_warnings() -> None:
    """Warnings of libraries below us say nothing that a user of this program can act on; their errors are
    ours to tell."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", TilewrightWarning)
    warnings.showwarning = _show_warning
    logging.disable(logging.WARNING)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    click.echo(f"warning: {message}", err=True)


def error_block(e: Exception) -> str:
    """What, where, what to do, as one block."""
    e = (missing(e) or e) if isinstance(e, ImportError) else e
    message = str(getattr(e, "message", "") or _message_of(e))
    where, hint = str(getattr(e, "where", "") or ""), str(getattr(e, "hint", "") or "")
    quote = getattr(e, "_quote", None)
    lines = [f"error: {message}" + (str(quote()) if callable(quote) else "")]
    lines += [f"  where: {where}"] if where else []
    lines += [f"  help: {hint}"] if hint else []
    return "\n".join(lines)


def _message_of(e: Exception) -> str:
    """Our own errors carry a full message; what the system or a package says stays as it is; anything else is
    a bug of ours."""
    if isinstance(e, OSError):
        return f"{e.filename}: {e.strerror}" if e.filename and e.strerror else str(e)
    if isinstance(e, MemoryError):
        return (
            f"there is not enough memory{f': {e}' if str(e) else ''}\n  help: choose smaller sizes, or "
            "a larger machine"
        )
    if isinstance(e, ImportError):
        return f"a package cannot be loaded: {e}\n  help: see what `tilewright doctor` says of it"
    known = isinstance(e, ValueError | RuntimeError) and type(e).__module__.startswith("tilewright")
    return (
        str(e)
        if known
        else f"internal: {type(e).__name__}: {e}\n  help: run again with --debug, and report the traceback"
    )
