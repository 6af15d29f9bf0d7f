"""Graphs of PyTorch operators before they are imported: what their placeholders stand for, what failed where.

In: nodes of `torch.fx`. Out: records of graphs and failures, places in the model's source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch

from tilewright.ir.errors import UnsupportedError
from tilewright.ir.graph.core import Location


@dataclass(frozen=True)
class Traced:
    """A graph of PyTorch operators and what its placeholders stand for. `inputs`: those that a caller gives,
    each with its name ("": nothing reads it; None: a number, not a tensor); `stored`: parameters, buffers and
    constants, with their names; `results`: names of the tensors that it returns, each once; `changed`: what
    it modifies."""

    graph: torch.fx.Graph
    inputs: tuple[tuple[torch.fx.Node, str | None], ...]
    stored: Mapping[torch.fx.Node, tuple[str, Any]]
    results: Sequence[str]
    changed: Sequence[str] = ()


# ------------------------------------------------------------------ failures
@dataclass(frozen=True)
class Failure:
    """A node that could not be imported: its operator or why, and where it stands."""

    what: str
    at: str
    node: torch.fx.Node


class NotImported(UnsupportedError):
    """Operators of a program that are not supported, all at once. `failed`: each of them."""

    def __init__(self, failed: tuple[Failure, ...]) -> None:
        super().__init__(*failures(failed))
        self.failed = failed


def failures(failed: Sequence[Failure]) -> tuple[str, str, str]:
    """Message, place and advice: each operator or fault once, how often, and up to three places."""
    where: dict[str, list[str]] = {}
    for f in failed:
        where.setdefault(f.what, []).append(f.at)
    lines = []
    for what, places in where.items():
        shown = ", ".join(dict.fromkeys(p for p in places if p))
        few = ", ".join(shown.split(", ")[:3]) + (", …" if len(shown.split(", ")) > 3 else "")
        lines.append(f"  {what} × {len(places)}" + (f"  at {few}" if few else ""))
    count = f"{len(where)} operator{'s' if len(where) > 1 else ''}"
    hint = "rewrite these lines of the model, or register an op and an importer for them"
    return f"{count} of the model that are not supported:\n" + "\n".join(lines), "", hint


def location(node: Any, prefix: str = "") -> Location | None:
    """The innermost line of the model's own source, and the module's path."""
    trace = node.meta.get("stack_trace") or ""
    frames = [f for f in re.findall(r'File "([^"]+)", line (\d+), in (\S+)', trace) if "/torch/" not in f[0]]
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    scope = str(modules[-1][0]).removeprefix(prefix.rstrip(".")).removeprefix(".") if modules else ""
    if not frames:
        return Location("", 0, scope) if scope else None
    file, line, _ = frames[-1]
    return Location(PurePath(file).name, int(line), scope)
