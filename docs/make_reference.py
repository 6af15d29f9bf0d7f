"""Writes the reference pages from the code: `docs/ir.md` from the registries, `docs/cli.md` from the command
line.

In: what is registered. Out: the two pages; with `--check` nothing is written, and the exit code says whether
they are up to date. Usage: `python docs/make_reference.py [--check]`.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click

import tilewright.ir.encodings
import tilewright.ir.ops  # noqa: F401  both register what they hold
from tilewright.cli.app import COMMANDS, cli
from tilewright.ir.encoding import known_encodings
from tilewright.ir.graph import verify as graph_verify
from tilewright.ir.ops.base import OPS, AttrSpec, OpDef
from tilewright.ir.plan import verify as plan_verify
from tilewright.ir.tile import verify as tile_verify
from tilewright.ir.tile.ops import DOTS, TILE_OPS
from tilewright.passes.base import PASSES, AnyPass, find_pass, type_name
from tilewright.passes.pipelines import LOWERING, PIPELINES
from tilewright.recipe import PRESETS

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Made by docs/make_reference.py: change the code, then run it. -->\n"
IR_INTRO = """\
Everything here is read from the registries. `docs/concepts.md` explains how to read the text; a user's file can add ops
and encodings (`docs/extending.md`).
"""
OPS_INTRO = """\
`?` marks an optional operand, `*` any number of them. *Pointwise* ops are expressions over the scalar primitives below.
"""
RULES_INTRO = """\
A message of a verifier starts with the number of the rule that is broken. No order of instances and no number of threads changes
what a kernel writes: rule 14 of kernels is checked for every pair of a store and another access to its buffer, and what cannot
be proved is refused unless the store says `disjoint`, which promises that no other instance touches what it writes.
"""
RULES = {"Modules": graph_verify, "Kernels": tile_verify, "Programs": plan_verify}
CLI_INTRO = """\
What `tilewright COMMAND --help` prints. Every command takes `--debug`, which shows the Python traceback of an error. Exit
codes: 0 done, 1 an error (told as what, where, what to do), 2 a wrong call, 130 interrupted.
"""


def first_sentence(text: str | None) -> str:
    """Of a docstring, on one line, fit for a table."""
    paragraph = inspect.cleandoc(text or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    return paragraph.split(". ")[0].rstrip(".")


def table(head: str, rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> str:
    columns = head.split(" | ")
    lines = [f"| {head} |", "|---" * len(columns) + "|", *(f"| {' | '.join(r)} |" for r in rows)]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------ the IR page
def ir_page() -> str:
    parts = [
        NOTE + "# Reference of the IR\n",
        IR_INTRO,
        "## Graph IR: ops\n",
        OPS_INTRO,
        table("op | operands | attributes | kind | what", [op_row(op) for _, op in sorted(OPS.items())]),
        "## Tile IR: operations\n",
        "Elementwise operations are the scalar primitives: all that a renderer spells pointwise.\n",
        table("primitives by operands | names", primitive_rows()),
        table(
            "other operation | operands | attributes",
            [tile_row(n) for n, op in TILE_OPS.items() if not op.elementwise],
        ),
        "`dot` multiplies [M, K] by [N, K]: "
        + ", ".join(f"{a} × {b} → {acc}" for (a, b), acc in DOTS.items())
        + ".\n",
        "## What the verifiers ask\n",
        RULES_INTRO,
        *(f"{title}:\n\n{rules(module)}\n" for title, module in RULES.items()),
        "## Encodings\n",
        "Known names: "
        + ", ".join(f"`{n}`" for n in known_encodings())
        + ". Forms and bits: `docs/recipes.md`.\n",
        "## Passes\n",
        "In pipeline text: `name{option=value}`, separated by commas.\n",
        table("pass | options | needs → gives | what", [pass_row(find_pass(n)) for n in sorted(PASSES)]),
        *(
            f"Pipeline `{kind}`: {', '.join(f'`{p}`' for p in (*order, *LOWERING))}.\n"
            for kind, order in PIPELINES.items()
        ),
    ]
    return "\n".join(parts)


def rules(module: ModuleType) -> str:
    """The numbered lines of a verifier's docstring."""
    return "".join(
        f"{line.strip()}\n"
        for line in inspect.cleandoc(module.__doc__ or "").splitlines()
        if re.match(r" *\d+\. ", line)
    )


def op_row(op: OpDef) -> tuple[str, ...]:
    kind = "pointwise" if op.expr else "state" if op.state else ""
    attrs = ", ".join(f"`{n}`: {spec_text(s)}" for n, s in op.attrs.items())
    doc = first_sentence(op.doc or getattr(op.meaning, "__doc__", "") or "")
    return f"`{op.name}`", ", ".join(op.operands), attrs, kind, doc


def spec_text(s: AttrSpec) -> str:
    return s.kind if s.default is ... else f"{s.kind} = {s.default}"


def primitive_rows() -> Iterator[tuple[str, ...]]:
    for arity in (1, 2, 3):
        yield (
            str(arity),
            ", ".join(f"`{n}`" for n, op in TILE_OPS.items() if op.elementwise and op.arity == arity),
        )


def tile_row(name: str) -> tuple[str, ...]:
    op = TILE_OPS[name]
    return f"`{name}`", str(op.arity), ", ".join(op.attrs)


def pass_row(cls: type[AnyPass]) -> tuple[str, ...]:
    hints = typing.get_type_hints(cls)
    options = ", ".join(f"`{f.name}`: {type_name(hints[f.name])}" for f in dataclasses.fields(cls)).replace(
        "|", "\\|"
    )
    facts = f"{', '.join(sorted(cls.needs)) or '–'} → {', '.join(sorted(cls.gives)) or '–'}"
    return f"`{cls.name}`", options, facts, first_sentence(cls.__doc__)


# ------------------------------------------------------------------ the command line page
def cli_page() -> str:
    parts = [
        NOTE + "# The command line\n",
        CLI_INTRO,
        "Recipes that `--recipe` knows by name: "
        + ", ".join(f"`{n}`" for n in PRESETS)
        + " (`docs/recipes.md`).\n",
        *(f"## {name}\n\n```text\n{help_of(name)}\n```\n" for name in COMMANDS),
    ]
    return "\n".join(parts)


def help_of(name: str) -> str:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    with click.Context(
        command, info_name=f"tilewright {name}", max_content_width=110, terminal_width=110
    ) as ctx:
        return command.get_help(ctx)


def pages() -> dict[str, str]:
    return {"ir.md": ir_page(), "cli.md": cli_page()}


def stale() -> list[str]:
    """Pages whose text is not what the code says."""
    return [n for n, text in pages().items() if not (DOCS / n).exists() or (DOCS / n).read_text() != text]


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/ir.md and docs/cli.md from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    if parser.parse_args().check:
        old = stale()
        print(
            "\n".join(f"docs/{n} is out of date: run python docs/make_reference.py" for n in old)
            or "up to date"
        )
        return int(bool(old))
    for name, text in pages().items():
        (DOCS / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
