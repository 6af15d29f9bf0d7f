"""The page of `benchmarks/kv_quality.py`: tables of means, paired differences and their standard errors.

In: measured values by encoding, policy and task. Out: Markdown. Measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tilewright.runtime.recall import paired

if TYPE_CHECKING:
    from kv_quality import Results, Setting, Task

#: controls, which are never marked as best
CONTROLS = ("full", "random", "window")
HEAD = """# KV encodings and cache policies

What a smaller KV cache costs a trained model: `examples/models/small-llama` (14 million parameters, context
4096), which recalls facts exactly over 3500 tokens as long as nothing is lost. Made by

    python benchmarks/kv_quality.py

Every difference is from the cache that keeps all tokens in bf16 (the first row), paired over the same
windows and questions, with its standard error. In each table the best policy or encoding of a column is
bold; random tokens and a window are controls. A policy acts when a prompt is complete: for perplexity, a
window is read in eight pieces. *Recall* is the share of facts ("The code of WORD is DDDDD.") that are
repeated exactly so many tokens later, with up to 31 other facts in between; the question is part of the
prompt. *Copy* is the loss on a passage of 64 tokens that is read a second time, in nats per token. *Bytes*
are those of memory that the cache of a sequence of 2048 tokens takes, measured, per token; *kept* is the
share of its rows that stay. An encoding `A / B` is of keys and of values. Samples of a cell: {samples}; a
run measures those that are missing of 60, 20 and 10 windows, 100 questions and 30 passages.
"""


def page(
    results: Results,
    settings: Sequence[Setting],
    tasks: Sequence[Task],
    lacking: Mapping[str, str],
) -> str:
    """A table per title, without settings that have no value; `lacking`: encodings that were refused."""
    base, lines = settings[0], [_head(results, settings, tasks)]
    for title_ in dict.fromkeys(s.table for s in settings):
        group = [s for s in settings if s.table == title_ and s != base]
        if any(results.of(s, t) is not None for s in group for t in tasks):
            lines += [f"\n## {title_}\n\n", *table(results, base, [base, *group], tasks)]
    left = [s for s in settings if all(results.of(s, t) is None for t in tasks) and s.kv not in lacking]
    if left:
        lines += [
            "\nNot measured yet, or not possible: ",
            ", ".join(f"`{_said(s, base)}`" for s in left),
            ".\n",
        ]
    if lacking:
        lines += ["\nNot measured:\n\n", *(f"* `{kv}`: {why}\n" for kv, why in lacking.items())]
    return "".join(lines)


def _head(results: Results, settings: Sequence[Setting], tasks: Sequence[Task]) -> str:
    """The text above the tables, which says how many samples the cells have."""
    counts = []
    for t in tasks:
        found = [len(v) for s in settings if (v := results.of(s, t))]
        if found and t.kind not in ("bytes", "kept"):
            least, most = min(found), max(found)
            counts.append(f"{least}{f' to {most}' * (most > least)} for {title(t)}")
    return HEAD.format(samples=", ".join(counts))


def table(results: Results, base: Setting, group: Sequence[Setting], tasks: Sequence[Task]) -> list[str]:
    """Lines of one table, a row per setting that was measured."""
    rows = [s for s in group if any(results.of(s, t) is not None for t in tasks)]
    bests = [best(results, rows, t) for t in tasks]
    out = ["| | " + " | ".join(map(title, tasks)) + " |\n", "|---|" + "---|" * len(tasks) + "\n"]
    for s in rows:
        cells = [
            f"**{text}**" if s is top and text else text
            for text, top in ((cell(results, base, s, t), b) for t, b in zip(tasks, bests, strict=True))
        ]
        out.append(f"| `{_said(s, base)}` | " + " | ".join(cells) + " |\n")
    return out


def _said(s: Setting, base: Setting) -> str:
    """What a setting changes."""
    parts = [p for p, usual in ((s.kv, base.kv), (s.cache, base.cache)) if p != usual]
    return "`, `".join(parts or [base.kv])


def title(task: Task) -> str:
    return task.kind if task.kind in ("bytes", "kept") else f"{task.kind} {task.size}"


def best(results: Results, rows: Sequence[Setting], task: Task) -> Setting | None:
    """The setting with the best mean that is not a control; None for columns that state sizes, and where
    several are equal to the last digit shown."""
    if task.kind in ("bytes", "kept"):
        return None
    found = [(s, results.of(s, task)) for s in rows[1:] if s.cache.partition("(")[0] not in CONTROLS[1:]]
    means = {s: round(float(np.mean(v)), 4) * (1 if task.kind == "recall" else -1) for s, v in found if v}
    winners = [s for s, m in means.items() if m == max(means.values())]
    return winners[0] if len(winners) == 1 else None


def cell(results: Results, base: Setting, setting: Setting, task: Task) -> str:
    """A mean, and for others than the base its difference with the standard error."""
    values, plain = results.of(setting, task), results.of(base, task)
    if values is None:
        return ""
    mean = float(np.mean(values))
    if task.kind == "bytes":
        return f"{mean:,.0f}"
    if task.kind == "kept":
        return f"{100 * mean:.1f}%"
    compared = plain is not None and setting != base
    both = min(len(values), len(plain or ()))
    delta, error = paired(values[:both], plain[:both]) if compared and plain else (0.0, 0.0)
    if both == 1:
        error = math.nan  # one sample has none
    match task.kind:
        case "recall":
            more, text = f"{100 * delta:+.0f}", f"{100 * mean:.0f}%"
            spread = f"{100 * error:.0f}"
        case "perplexity":
            more, text = f"{100 * math.expm1(delta):+.2f}%", f"{math.exp(mean):.3f}"
            spread = f"{100 * error:.2f}"
        case _:
            more, text, spread = f"{delta:+.3f}", f"{mean:.3f}", f"{error:.3f}"
    if not compared:
        return text
    return f"{text} ({more})" if math.isnan(error) else f"{text} ({more} ± {spread})"
