"""The channel factors of a segment: how each equalized input is rescaled, and which weights change.

In: a view of the calibrated graph, a segment, statistics by input. Out: factors by input, changes by weight,
what was declined. Kept in the work folder before anything of the segment is solved.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tilewright.calibration.segments import Segment
from tilewright.ir.graph.core import Stored, Weight
from tilewright.ir.ops.base import Array
from tilewright.ir.solver import F32, Solver, Statistics
from tilewright.ir.weights.safetensors import SafeTensors, write_safetensors
from tilewright.ir.weights.solved import FOLDER, Solution
from tilewright.passes.channel_factors import Change, Fold, fold_of
from tilewright.passes.patterns import View
from tilewright.passes.rewrite import Declined
from tilewright.passes.solvers.equalize import Equalizer


@dataclass
class Factors:
    """`inputs`: t [K] by operand; `changes` by weight; `declined`: reasons by operand."""

    inputs: dict[str, F32] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """All of it in one file, with the reasons beside it."""
        arrays: dict[str, Array] = {f"t:{x}": t for x, t in self.inputs.items()}
        for name, c in self.changes.items():
            arrays |= {f"{n}:{name}": np.asarray(m) for n, m in enumerate(c.muls)}
            arrays |= {} if c.add is None else {f"add:{name}": np.asarray(c.add)}
        path.with_suffix(".json").write_text(json.dumps(self.declined))
        write_safetensors(path, arrays)

    @staticmethod
    def load(path: Path) -> Factors:
        held = SafeTensors(path)
        out = Factors(declined=json.loads(path.with_suffix(".json").read_text("utf-8")))
        muls: dict[str, list[F32]] = {}
        arrays = {key: np.array(held.raw(key)[0], np.float32) for key in held.entries}
        for key, x in arrays.items():
            kind, _, name = key.partition(":")
            if kind == "t":
                out.inputs[name] = x
            elif kind != "add":
                muls.setdefault(name, []).append(x)
        out.changes = {n: Change(tuple(m), arrays.get(f"add:{n}")) for n, m in muls.items()}
        return out

    def solutions(self, file: str) -> dict[str, Solution]:
        """The changes of weights as sources in the file that they were saved in."""

        def at(key: str) -> Stored:
            return Stored(f"{FOLDER}{file}", key)

        return {
            name: Solution(
                tuple(at(f"{n}:{name}") for n in range(len(c.muls))),
                None if c.add is None else at(f"add:{name}"),
            )
            for name, c in self.changes.items()
        }


def equalizer_of(solver: Solver | None) -> Equalizer | None:
    return next((s for s in solver.chain() if isinstance(s, Equalizer)), None) if solver else None


def choose_factors(
    view: View,
    segment: Segment,
    solvers: Mapping[str, Solver],
    values: Callable[[Weight], F32],
    seen: Mapping[str, Statistics],
) -> Factors:
    """Factors of all inputs in a segment. `solvers`: of every weight that is calibrated, in this segment or
    another."""
    out = Factors()
    for x in dict.fromkeys(x for x, _ in segment.linears):
        readers = [w for at, w in segment.linears if at == x]
        kinds = {equalizer_of(solvers[w]) for w in readers}
        if kinds == {None}:
            continue
        try:
            fold = _fold(view, x, readers, kinds, {w for _, w in segment.linears}, set(solvers))
        except Declined as why:
            out.declined[x] = f"{readers[0]}: {why}"
            continue
        (kind,) = kinds
        assert kind is not None
        group = [
            (values(view.weights[w]), encoding)
            for w in readers
            if (encoding := view.weights[w].type.encoding) is not None
        ]
        t = kind.factors(group, seen[x], fold.classes)
        _enter(out, view, x, readers, fold, t)
    return out


def _fold(
    view: View, x: str, readers: list[str], kinds: set[Equalizer | None], here: set[str], wanted: set[str]
) -> Fold:
    if len(kinds) > 1:
        raise Declined("weights that share an input have different solvers")
    fold = fold_of(view, x, set(readers))
    if fold.weight in wanted and fold.weight not in here:
        raise Declined(
            f"@{fold.weight}, into which the inverse factors would be folded, has already been solved"
        )
    return fold


def _enter(out: Factors, view: View, x: str, readers: list[str], fold: Fold, t: F32) -> None:
    if (t == t[0]).all():
        return
    out.inputs[x] = t[fold.classes]
    changes = {w: Change((t[fold.classes][None],)) for w in readers}
    for name, change in fold.changes(t, int(view.weights[fold.weight].type.shape[0])).items():
        changes[name] = change.after(changes.get(name))
    for name, change in changes.items():
        out.changes[name] = change.after(out.changes.get(name))
