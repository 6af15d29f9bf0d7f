"""Tuning files: schedules by the content of the kernel they belong to, as JSON.

In: schedules that were measured, or a file and a program. Out: the file, or the program with the schedules
before its own. A schedule cannot change a result, so a tuning file cannot either; one of another machine is
only slow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tilewright.backends.base import Tunable
from tilewright.backends.registry import backend, known_backends
from tilewright.ir.errors import RefusedError, TilewrightError
from tilewright.ir.plan.core import Program
from tilewright.ir.text.tile_printer import print_kernel
from tilewright.ir.tile.core import Condition, Kernel, Schedule
from tilewright.ir.tile.verify import verify_kernel
from tilewright.user_files import read_text

#: 2: what a schedule does not say has no default, such as `sums` and `parts`
FORMAT = 2


def digest(kernel: Kernel) -> str:
    """Content of a kernel without its name and schedules."""
    return hashlib.sha256(print_kernel(replace(kernel, name="k", schedules=())).encode()).hexdigest()[:24]


# ------------------------------------------------------------------ candidates
def tunable(kernel: Kernel) -> bool:
    """Contractions whose tile height is a schedule's to choose, and whose only run-time size is the number of
    rows."""
    return (
        any(a.rows and isinstance(a.step, str) for a in kernel.grid)
        and len(kernel.symbols) == 1
        and bool(kernel.schedules)
    )


def write_tuning(path: Path, schedules: Mapping[str, Sequence[Schedule]], target: str, cpu: str) -> int:
    """Write the schedules of one target, or add them to a tuning file; how many kernels it changes now."""
    found = read_tuning(path) if path.exists() else {}
    for key, mine in schedules.items():
        found[key] = (*(s for s in found.get(key, ()) if s.target != target), *mine)
    body = {
        "format": FORMAT,
        "cpu": cpu,
        "kernels": {k: [_as_json(s) for s in v] for k, v in sorted(found.items()) if v},
    }
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(body, indent=1) + "\n", "utf-8")
    part.replace(path)
    return sum(bool(v) for v in found.values())


def read_tuning(path: Path) -> dict[str, tuple[Schedule, ...]]:
    """Schedules by kernel digest. RefusedError for anything that is not a tuning file."""
    hint = "create one with: tilewright tune DIR -o FILE"
    text = read_text(path, "a file that `tilewright tune DIR -o FILE` wrote")
    try:
        body = json.loads(text)
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']}, expected {FORMAT}")
        return {str(k): tuple(_from_json(s) for s in v) for k, v in body["kernels"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as why:
        raise RefusedError(
            f"not a tuning file: {type(why).__name__}: {str(why)[:200]}", str(path), hint
        ) from why


def apply_tuning(
    program: Program, tuning: Mapping[str, Sequence[Schedule]], where: str
) -> tuple[Program, int]:
    """The program with tuned schedules before its own, and how many kernels have some. A schedule that the
    verifier declines is an error: the file was changed by hand, or is of another version."""
    kernels, used = [], 0
    for k in program.kernels:
        mine = tuning.get(digest(k), ()) if tunable(k) else ()
        if mine:
            used += 1
            k = replace(k, schedules=(*mine, *k.schedules))
            try:
                verify_kernel(k)
            except TilewrightError as why:
                raise RefusedError(
                    f"a schedule for kernel @{k.name} is not legal: {why}", where, "tune again"
                ) from why
        kernels.append(k)
    return replace(program, kernels=tuple(kernels)), used


def _as_json(s: Schedule) -> dict[str, Any]:
    when = [[c.symbol, c.op, c.value] for c in s.when]
    return {"target": s.target, "sizes": dict(s.sizes), "when": when, "order": list(s.order),
            "threads": s.threads, "stages": [list(x) for x in s.stages],
            "prefetch": [list(x) for x in s.prefetch], "options": [list(x) for x in s.options]}  # fmt: skip


def _from_json(x: Mapping[str, Any]) -> Schedule:
    known = [
        t for name in known_backends() if isinstance(backend(name), Tunable) for t in backend(name).targets
    ]
    if x["target"] not in known:
        raise ValueError(f"target {x['target']!r}, expected one of {', '.join(known)}")
    sizes = tuple(sorted((_name(n), _count(v)) for n, v in x["sizes"].items()))
    when = tuple(Condition(_name(a), _operator(op), _count(v)) for a, op, v in x["when"])
    stages = tuple((_name(a), _name(b)) for a, b in x["stages"])
    prefetch = tuple((_name(a), _count(n)) for a, n in x["prefetch"])
    options = tuple((_name(a), _count(n)) for a, n in x.get("options", []))
    return Schedule(
        x["target"],
        sizes,
        when,
        tuple(map(_name, x["order"])),
        _name(x["threads"]),
        stages,
        prefetch,
        options,
    )


def _name(x: object) -> str:
    if not isinstance(x, str) or not x.replace("_", "").replace(" ", "").isalnum() or len(x) > 60:
        raise ValueError(f"expected a name, got {str(x)[:40]!r}")
    return x


def _operator(x: object) -> str:
    if x not in ("<=", "<", ">=", ">", "=="):
        raise ValueError(f"expected a comparison, got {str(x)[:40]!r}")
    return str(x)


def _count(x: object) -> int:
    if not isinstance(x, int) or isinstance(x, bool) or not 0 < x < 1 << 20:
        raise ValueError(f"expected a number of 1 to {1 << 20}, got {str(x)[:40]!r}")
    return x
