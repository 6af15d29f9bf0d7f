"""Tuning: candidates are legal, the file has the winners, tuned kernels give the same bits; bad files."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tilewright as tw
from tilewright.backends.cpp.cost import predicted
from tilewright.backends.cpp.isa import TARGETS
from tilewright.backends.cpp.levels import resolve_levels
from tilewright.backends.cpp.render import render_kernel
from tilewright.cli.app import cli
from tilewright.ir.errors import RefusedError
from tilewright.ir.tile.core import Condition, Schedule
from tilewright.tools import tune
from tilewright.tools.tune import Choice, Trial, by_kernel, candidates, tuned_schedules
from tilewright.tools.tuning_file import apply_tuning, digest, read_tuning, tunable, write_tuning

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags


@pytest.fixture(scope="module")
def compiled(tiny_llama: Path) -> tw.Compiled:
    return tw.compile(tiny_llama, recipe="w4a8")


def linears(compiled: tw.Compiled) -> list[Any]:
    return [k for k in compiled.program.kernels if tunable(k)]


def test_only_contractions_are_tuned(compiled: tw.Compiled) -> None:
    assert linears(compiled)
    assert all("linear" in k.name for k in linears(compiled))


@pytest.mark.parametrize("rows", [1, pytest.param(16, marks=pytest.mark.slow), 512])
def test_the_default_comes_first_and_the_rest_by_cost(compiled: tw.Compiled, rows: int) -> None:
    kernel = linears(compiled)[0]
    trials = candidates(kernel, "avx512_vnni", rows, 8)
    costs = [t.predicted for t in trials[1:]]
    assert len(trials) == len({t.schedule for t in trials}) == 8
    assert costs == sorted(costs)
    assert min(costs) > 0


def test_no_two_candidates_are_the_same_code(compiled: tw.Compiled) -> None:
    """A prefetch of what is staged changes nothing, for one."""
    kernel = linears(compiled)[0]
    texts = [render_kernel(replace(kernel, schedules=(replace(t.schedule, when=()),)), TARGETS["avx512_vnni"])
             for t in candidates(kernel, "avx512_vnni", 512, 16)]  # fmt: skip
    assert len(set(texts)) == len(texts) == 16


def test_a_lucky_run_is_not_a_win(compiled: tw.Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two candidates have one quick run each; interleaved with the default the first is no faster, the second
    is."""

    class Fake:
        def __init__(self, times: list[float]) -> None:
            self.times = iter([*times, *[times[-1]] * 99])

        def bench(self, *_: object, **__: object) -> float:
            return next(self.times)

    fakes = iter([Fake([1.0]), Fake([1.0, 0.2, 1.0]), Fake([0.8, 0.5, 0.8])])
    monkeypatch.setattr(tune, "_built", lambda *_: next(fakes))
    monkeypatch.setattr(tune, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(1))
    kernel = linears(compiled)[0]
    trials = tune._measured(kernel, "avx2", 4, candidates(kernel, "avx2", 4, 3), 1)
    assert [t.seconds for t in trials] == pytest.approx([1.0, 1.0, 0.8])
    assert Choice("k", "d", 4, tuple(trials)).gain == pytest.approx(1.25)


def test_the_model_knows_that_tall_tiles_reuse_weights_and_taller_ones_spill(compiled: tw.Compiled) -> None:
    kernel, target = linears(compiled)[0], TARGETS["avx512_vnni"]
    base = candidates(kernel, target.name, 512, 1)[0].schedule
    one, six, huge = (predicted(kernel, _sized(base, BM=m, BN=32), target, 504) for m in (1, 6, 24))
    assert six < one
    assert six < huge


def _sized(s: Schedule, **sizes: int) -> Schedule:
    return replace(s, sizes=tuple(sorted((dict(s.sizes) | sizes).items())))


def _choice(kernel: Any, rows: int, *seconds: float) -> Choice:
    trials = candidates(kernel, "avx512_vnni", rows, len(seconds))
    return Choice(
        kernel.name,
        digest(kernel),
        rows,
        tuple(replace(t, seconds=s) for t, s in zip(trials, seconds, strict=True)),
    )


def test_a_small_gain_changes_nothing(compiled: tw.Compiled) -> None:
    kernel = linears(compiled)[0]
    assert tuned_schedules([_choice(kernel, 1, 1.0, 0.99)], "avx512_vnni", "M") == ()


def test_winners_hold_up_to_their_rows(compiled: tw.Compiled) -> None:
    kernel = linears(compiled)[0]
    made = tuned_schedules([_choice(kernel, 512, 1.0, 0.5), _choice(kernel, 1, 1.0, 2.0)], "avx512_vnni", "M")
    assert [s.when for s in made] == [(Condition("M", "<=", 1),), ()]
    assert made[1].sizes == candidates(kernel, "avx512_vnni", 512, 2)[1].schedule.sizes


@pytest.mark.slow
def test_tuned_kernels_give_the_same_bits(tiny_llama: Path, compiled: tw.Compiled, tmp_path: Path) -> None:
    """Another schedule for every kernel: the logits are what they were, and the dump shows the schedules."""
    level = resolve_levels("native")[-1].name
    choices = []
    for k in linears(compiled):
        trials = candidates(k, level, 512, 6)
        won = tuple(replace(t, seconds=1.0 if n else 2.0) for n, t in enumerate(trials[:1] + trials[-1:]))
        choices.append(Choice(k.name, digest(k), 512, won))
    path = tmp_path / "tuning.json"
    found = by_kernel(choices, level, compiled.program)
    assert write_tuning(path, found, level, "a machine") == len(linears(compiled))
    tuned = tw.compile(tiny_llama, recipe="w4a8", tuning=path)
    ids = np.arange(3, 40)
    assert np.array_equal(np.asarray(tuned.load()(ids)), np.asarray(compiled.load()(ids)))
    assert tuned.stages[-1].name == "tune"
    assert any("schedules" in n and f"{len(linears(compiled))} of" in n for n in tuned.notes)


def test_files_of_several_levels_add_up(compiled: tw.Compiled, tmp_path: Path) -> None:
    kernel, path = linears(compiled)[0], tmp_path / "tuning.json"
    for level in ("avx2", "avx512_vnni"):
        trials = [replace(t, seconds=2.0 - n) for n, t in enumerate(candidates(kernel, level, 64, 2))]
        choice = Choice(kernel.name, digest(kernel), 64, tuple(trials))
        write_tuning(path, by_kernel([choice], level, compiled.program), level, "a machine")
    assert {s.target for s in read_tuning(path)[digest(kernel)]} == {"avx2", "avx512_vnni"}


def _broken(change: Callable[[dict[str, Any]], Any], kernel: str) -> dict[str, Any]:
    schedule = {
        "target": "avx2",
        "sizes": {"BM": 2, "BN": 16},
        "when": [],
        "order": ["j", "i"],
        "threads": "j",
        "stages": [],
        "prefetch": [],
    }
    body = {"format": 2, "cpu": "x", "kernels": {kernel: [schedule]}}
    change(body)
    return body


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b.update(format=1), "format 1, expected 2"),
        (lambda b: b.pop("kernels"), "KeyError"),
        (lambda b: b["kernels"]["k"][0].update(target="sse9"), "sse9"),
        (lambda b: b["kernels"]["k"][0]["sizes"].update(BM=-1), "got '-1'"),
        (lambda b: b["kernels"]["k"][0].update(threads="j; system(0)"), "expected a name"),
        (lambda b: b["kernels"].update(k=7), "TypeError"),
    ],
)
def test_a_file_that_is_no_tuning_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(_broken(change, "k")))
    with pytest.raises(RefusedError, match=says) as e:
        read_tuning(path)
    assert "tilewright tune" in str(e.value)


def test_a_schedule_that_is_not_legal_is_refused(compiled: tw.Compiled, tmp_path: Path) -> None:
    kernel = linears(compiled)[0]
    bad = replace(candidates(kernel, "avx2", 4, 1)[0].schedule, threads="nowhere")
    with pytest.raises(RefusedError, match="is not legal"):
        apply_tuning(compiled.program, {digest(kernel): (bad,)}, "t.json")


def test_the_command_measures_and_writes(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    args = [
        "tune",
        str(tiny_llama),
        "-o",
        str(path),
        "--recipe",
        "w4a8",
        "--rows",
        "1,8",
        "--candidates",
        "2",
        "--kernels",
        "linear_2",
        "--json",
    ]
    done = CliRunner().invoke(cli, args, catch_exceptions=False)
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert [c["rows"] for c in found["choices"]] == [1, 8]
    assert all(t["seconds"] > 0 for c in found["choices"] for t in c["trials"])
    assert read_tuning(path) is not None


def test_a_wrong_kernel_name_lists_the_right_ones(compiled: tw.Compiled) -> None:
    with pytest.raises(RefusedError, match="linear"):
        tune.tune(compiled.program, "avx2", [1], threads=1, only="nothing")


def test_trials_that_do_not_build_cannot_win(compiled: tw.Compiled) -> None:
    trials = candidates(linears(compiled)[0], "avx2", 4, 2)
    choice = Choice("k", "d", 4, (replace(trials[0], seconds=1.0), Trial(trials[1].schedule, 0.0)))
    assert choice.best is choice.trials[0]
