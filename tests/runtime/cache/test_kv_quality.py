"""The benchmark of KV quality: it resumes, its page says what was measured, its measures mean something."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tilewright.ir.errors import RefusedError
from tilewright.runtime.cache import parse_policy
from tilewright.runtime.cache.registry import HOMES

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def quality() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import kv_page  # noqa: F401
        import kv_quality

        yield kv_quality
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_every_policy_that_needs_no_file_is_measured(quality: ModuleType) -> None:
    texts = [*(p.format(0.25) for p in quality.POLICIES), *quality.FREE]
    assert {parse_policy(t).name for t in texts} == set(HOMES) - {
        "full",
        "scalekv",
        "duo",
        "trimkv",
        *(n for n, home in HOMES.items() if home == "selecting"),
    }
    chosen = [s for s in quality.settings((), (), (0.25,)) if s.selects]
    assert {parse_policy(s.cache).name for s in chosen} == {n for n, h in HOMES.items() if h == "selecting"}
    found = quality.settings(quality.ENCODINGS, quality.POLICIES, quality.BUDGETS)
    assert len(set(found)) == len(found) and found[0] == quality.BASE
    assert {f"Policies at {b}% budget" for b in (50, 25, 12, 6)} < {s.table for s in found}
    assert all(parse_policy(s.cache) for s in found)
    assert {t.size for t in quality.FULL_RUN if t.kind == "recall"} == {512, 1024, 2048, 3500}
    assert all(t.count >= 100 for t in quality.FULL_RUN if t.kind == "recall")


class Fake:
    """Values that are worse with smaller budgets; some encodings are refused."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def values(self, setting: object, task: object) -> list[float]:
        kv, cache = setting.kv, setting.cache  # type: ignore[attr-defined]
        self.asked.append((kv, cache))
        if kv.startswith("int2"):
            raise RefusedError("no such encoding", "kv")
        lost = 0 if cache == "full" else 3 if cache.startswith("random") else 2 if "h2o" in cache else 1
        first, count = task.first, task.count  # type: ignore[attr-defined]
        draw = np.random.default_rng(7).random(first + count)[first:]
        if task.kind == "recall":  # type: ignore[attr-defined]
            return [float(x > 0.2 * lost) for x in draw]
        return (2 + draw + 0.1 * lost).tolist()


def test_it_resumes_and_writes_a_page(quality: ModuleType, tmp_path: Path) -> None:
    from kv_page import page

    tasks = [
        quality.Task("perplexity", 512, 8),
        quality.Task("recall", 512, 10),
        quality.Task("kept", 2048, 1),
    ]
    wanted = quality.settings(
        ("int8(token)", "int2(group=32)"),
        ("random(budget={})", "h2o(budget={})", "snapkv(budget={})"),
        (0.25,),
    )
    wanted = [s for s in wanted if s.table in ("Encodings", "Policies at 25% budget")]
    results, first = quality.Results(tmp_path / "r.jsonl"), Fake()
    lacking = quality.run(first, results, wanted[:4], tasks, math.inf)
    assert lacking == {"int2(group=32)": "no such encoding"} and len(first.asked) == 3 * 3 + 1
    again, second = quality.Results(tmp_path / "r.jsonl"), Fake()
    quality.run(second, again, wanted, tasks, math.inf)
    assert second.asked == [("int2(group=32)", "full")] + [
        ("bf16", s.cache) for s in wanted[4:] for _ in tasks
    ]

    text = page(again, wanted, tasks, lacking)
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    names = [line.split("`")[1] for line in lines]
    assert names == [
        "bf16",
        "int8(token)",
        "bf16",
        "random(budget=0.25)",
        "h2o(budget=0.25)",
        "snapkv(budget=0.25)",
    ]
    assert (
        "* `int2(group=32)`: no such encoding" in text
        and "Samples of a cell: 8 for perplexity 512, 10 for recall 512;" in text
    )
    cells = [c.strip() for c in lines[-1].split("|")[2:-1]]
    base = float(lines[0].split("|")[2])
    assert cells[0] == f"**{base * np.exp(0.1):.3f} (+10.52% ± 0.00)**" and cells[1].startswith("**")
    assert "**" not in lines[3] + lines[4]


def test_more_samples_are_added_to_those_that_are_there(quality: ModuleType, tmp_path: Path) -> None:
    few, more = quality.Task("recall", 512, 4), quality.Task("recall", 512, 10)
    path, base = tmp_path / "r.jsonl", quality.BASE
    assert quality.run(Fake(), quality.Results(path), [base], [few], -math.inf) == {} and not path.exists()
    quality.run(Fake(), quality.Results(path), [base], [few], math.inf)
    again = quality.Results(path)
    assert again.left(base, more) == quality.Task("recall", 512, 6, 4)
    quality.run(Fake(), again, [base], [more], math.inf)
    assert quality.Results(path).of(base, more) == Fake().values(base, more)
    assert again.left(base, more) is None and again.left(base, few) is None


@pytest.mark.slow
def test_measures_of_a_compiled_model(
    quality: ModuleType, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TW_POISON", "0")  # which would touch all of the caches' memory
    bench = quality.Bench(tiny_llama, ROOT / "examples" / "heldout.txt", tmp_path, others=3)
    base, half = quality.Setting(), quality.Setting(cache="snapkv(budget=0.5, window=8)")

    def values(setting: object, kind: str, size: int, count: int) -> list[float]:
        found: list[float] = bench.values(setting, quality.Task(kind, size, count))
        return found

    plain, cut = values(base, "perplexity", 128, 3), values(half, "perplexity", 128, 3)
    assert len(plain) == len(cut) == 3 and plain != cut and all(2 < x < 6 for x in plain + cut)
    assert values(base, "kept", 256, 1) == [1.0]
    assert abs(values(half, "kept", 256, 1)[0] - 0.5) < 0.01
    assert set(values(half, "recall", 128, 3)) <= {0.0, 1.0}
    assert len(values(half, "copy", 128, 2)) == 2
    full, less = values(base, "bytes", 1024, 8)[0], values(half, "bytes", 1024, 8)[0]
    assert full == pytest.approx(6 * 4 * 2 * 32 * 2, rel=0.35) and less < 0.8 * full
