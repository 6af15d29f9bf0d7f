"""Sessions whose caches lose rows.

Nothing changes while the budget suffices, and what is kept does not depend on how tokens arrive, on the batch
or on threads; forks, truncation, wrong calls of the C interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.compiler.test_compiled_llama import llama_artifact
from tests.passes.models import Llama
from tilewright.recipe import resolve_recipe
from tilewright.runtime.cache import CacheAccess, CachePolicy, Protected
from tilewright.runtime.cache.native import NativeCache
from tilewright.runtime.cache.policy import Observe
from tilewright.runtime.errors import SessionError
from tilewright.runtime.model import Model, load
from tilewright.runtime.session import Session

F32 = NDArray[np.float32]
SHAPE = Llama(hidden=64, inner=96, vocab=64)
IDS = np.random.default_rng(3).integers(0, 64, 900)
PROMPT, AFTER = 600, 40


@dataclass(frozen=True)
class Watched(Protected):
    """For these tests: what all queries looked at most."""

    name: ClassVar[str] = "watched"

    @property
    def observe(self) -> Observe:
        return "all"


@dataclass(frozen=True)
class Folded(Watched):
    """For these tests: what goes is added to the first row that stays."""

    name: ClassVar[str] = "folded"

    def merge(
        self, cache: CacheAccess, layer: int, head: int, kept: NDArray[np.int32], gone: NDArray[np.int32]
    ) -> None:
        keys, values = cache.keys(layer, head), cache.values(layer, head)
        one = kept[:1]
        both = np.append(gone, one)
        cache.write(layer, head, one, keys[both].mean(0)[None], values[both].mean(0)[None])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    recipe = resolve_recipe({"base": "f32", "cache": "full", "context": 1024})
    return load(llama_artifact(SHAPE, recipe, tmp_path_factory.mktemp("evicts")), threads=2)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(
        llama_artifact(
            SHAPE, resolve_recipe({"base": "f32", "context": 1024}), tmp_path_factory.mktemp("usual")
        ),
        threads=2,
    )


def fed(s: Session, seq: int, ids: NDArray[np.int64], cuts: Sequence[int]) -> F32:
    """Logits of the last token of every item."""
    out, at = [], 0
    for n in cuts:
        out.append(s.step([(seq, ids[at : at + n], "last")])[0])
        at += n
    return np.concatenate([x for x in out if x is not None])


def rows_of(s: Session, seq: int) -> list[NDArray[np.int32]]:
    cache = access(s, seq)
    return [
        cache.positions(layer, head) for layer in range(cache.layers) for head in range(cache.heads(layer))
    ]


def access(s: Session, seq: int) -> NativeCache:
    assert s.caches is not None
    return s.caches.access(seq)


# ------------------------------------------------------------------ T-id
@pytest.mark.parametrize("policy", ["full", "window(recent=1000)", Watched(budget=1000)], ids=str)
def test_enough_budget_changes_nothing(model: Model, usual: Model, policy: str | CachePolicy) -> None:
    with usual.session() as a, model.session(cache=policy) as b:
        cuts = [PROMPT, *[1] * 5]
        assert np.array_equal(fed(a, a.add(), IDS, cuts), fed(b, b.add(), IDS, cuts))


# ------------------------------------------------------------------ T-set
def test_kept_rows_are_within_the_budget_and_hold_what_is_protected(model: Model) -> None:
    with model.session(cache=Watched(budget=0.25, sinks=4, recent=32)) as s:
        seq = s.add()
        fed(s, seq, IDS, [PROMPT])
        for rows in rows_of(s, seq):
            assert len(rows) == PROMPT // 4 and (np.diff(rows) > 0).all()
            assert set(range(4)) | set(range(PROMPT - 32, PROMPT)) <= set(rows.tolist())


def test_scores_are_the_attention_that_rows_got(model: Model) -> None:
    with model.session(cache=Watched(budget=1000)) as s:
        seq, heads = s.add(), SHAPE.heads // SHAPE.kv_heads
        fed(s, seq, IDS, [PROMPT, 1, 1])
        cache = access(s, seq)
        for layer in range(cache.layers):
            for head in range(cache.heads(layer)):
                assert cache.scores(layer, head).sum() == pytest.approx(heads * (PROMPT + 2), rel=1e-5)


# ------------------------------------------------------------------ equal bits
def test_neither_threads_nor_the_batch_change_what_is_kept(model: Model) -> None:
    policy = Watched(budget=0.3)
    with model.session(cache=policy) as alone, model.session(3, threads=1, cache=policy) as full:
        one = alone.add()
        want = fed(alone, one, IDS, [PROMPT, *[1] * AFTER])
        other, seq = full.add(), full.add()
        got = [full.step([(other, IDS[100:333], "none"), (seq, IDS[:PROMPT], "last")])[1]]
        for n in range(AFTER):
            more = (seq, IDS[PROMPT + n : PROMPT + n + 1], "last")
            got.append(full.step([(other, IDS[n : n + 1], None), more])[1])
        assert np.array_equal(np.concatenate([x for x in got if x is not None]), want)
        for a, b in zip(rows_of(alone, one), rows_of(full, seq), strict=True):
            assert np.array_equal(a, b)
        assert len(rows_of(alone, one)[0]) < PROMPT * 0.3 + 17


def test_evicting_all_but_a_window_is_attention_over_the_window(model: Model) -> None:
    """Keys keep the positions that they were rotated by: rows that stay are read as if the others had never
    been attended to."""
    with model.session(cache="window(sinks=0, recent=64, slack=1)") as s:
        seq = s.add()
        fed(s, seq, IDS, [100, 1, 1])
        for rows in rows_of(s, seq):
            assert np.array_equal(rows, np.arange(102 - 64, 102))


# ------------------------------------------------------------------ fork, truncate, drop
def test_a_fork_continues_as_its_source(model: Model) -> None:
    with model.session(2, cache=Watched(budget=0.2)) as s:
        a = s.add()
        fed(s, a, IDS, [PROMPT, 1, 1])
        b = s.fork(a)
        rest = IDS[PROMPT + 2 :]
        first, second = fed(s, a, rest, [1] * 20), fed(s, b, rest, [1] * 20)
        assert np.array_equal(first, second)
        for x, y in zip(rows_of(s, a), rows_of(s, b), strict=True):
            assert np.array_equal(x, y)


def test_truncating_removes_the_positions_from_there_on(model: Model) -> None:
    with model.session(cache=Watched(budget=0.2)) as s:
        seq = s.add()
        fed(s, seq, IDS, [PROMPT, 1, 1])
        before = rows_of(s, seq)
        s.truncate(seq, 300)
        for old, new in zip(before, rows_of(s, seq), strict=True):
            assert np.array_equal(new, old[old < 300])
        fed(s, seq, IDS[300:], [1, 1])
        assert all(rows[-2:].tolist() == [300, 301] for rows in rows_of(s, seq))


def test_a_sequence_in_the_place_of_a_dropped_one_starts_afresh(model: Model) -> None:
    with model.session(cache=Watched(budget=0.2)) as s:
        seq = s.add()
        want = fed(s, seq, IDS, [PROMPT, 1, 1])
        s.drop(seq)
        assert np.array_equal(fed(s, s.add(), IDS, [PROMPT, 1, 1]), want)


# ------------------------------------------------------------------ merging
def test_merged_rows_are_written_in_the_encoding_of_the_cache(model: Model) -> None:
    with model.session(cache=Watched(budget=0.2)) as a, model.session(cache=Folded(budget=0.2)) as b:
        x, y = a.add(), b.add()
        fed(a, x, IDS, [PROMPT])
        fed(b, y, IDS, [PROMPT])
        keys, folded = access(a, x).keys(0, 0), access(b, y).keys(0, 0)
        assert np.array_equal(keys[1:], folded[1:]) and not np.array_equal(keys[0], folded[0])


# ------------------------------------------------------------------ memory
def resident() -> int:
    """Bytes of this process's own memory."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous"))


def taken(model: Model, policy: str) -> int:
    """Bytes that prompts of 32 sequences leave in the caches."""
    with model.session(32, cache=policy) as s:
        s.step([(s.add(), IDS[:PROMPT], "none")])  # touches the arena
        before = resident()
        for _ in range(31):
            s.step([(s.add(), IDS[:PROMPT], "none")])
        return resident() - before


def test_eviction_gives_memory_back(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TW_POISON", "0")
    key, value, numbers = 4 * SHAPE.dim, 4 * 16, 4 + 4  # values are padded to 16 channels
    rows = 31 * SHAPE.layers * SHAPE.kv_heads * PROMPT * (key + value + numbers)
    assert taken(model, "full") > 0.8 * rows
    assert taken(model, "window(sinks=0, recent=16, slack=1)") < 0.4 * rows


# ------------------------------------------------------------------ refused
def test_a_policy_needs_caches_that_lose_rows(usual: Model) -> None:
    with pytest.raises(SessionError) as e:
        usual.session(cache="window(recent=64)")
    assert str(e.value) == (
        "cache policy window(recent=64): the caches of this artifact do not lose rows\n"
        '  help: compile the model with cache="window(recent=64)"'
    )


WRONG_KEEPS = {
    "descending": ([3, 2], "tw_keep: rows[1] is 2, expected ascending rows below 50"),
    "beyond": ([50], "tw_keep: rows[0] is 50, expected ascending rows below 50"),
    "negative": ([-1], "tw_keep: rows[0] is -1, expected ascending rows below 50"),
}


@pytest.mark.parametrize("name", WRONG_KEEPS)
def test_wrong_rows_are_refused(model: Model, name: str) -> None:
    rows, message = WRONG_KEEPS[name]
    with model.session(cache="full") as s:
        seq = s.add()
        fed(s, seq, IDS, [50])
        with pytest.raises(SessionError, match="^" + message.replace("[", r"\[").replace("]", r"\]")):
            s.native.keep(0, seq, 0, 50, np.asarray(rows, np.int32))


WRONG_RUNS = {
    "beyond the step": [[0, 9, 0, 0]],
    "another position": [[0, 2, 0, 1]],
    "another sequence": [[0, 2, 1, 0]],
    "twice": [[0, 1, 0, 0], [1, 1, 0, 1]],
    "negative": [[-1, 1, 0, 0]],
    "empty": [[0, 0, 0, 0]],
}


@pytest.mark.parametrize("name", WRONG_RUNS)
def test_wrong_runs_are_refused_and_the_session_goes_on(model: Model, name: str) -> None:
    with model.session(2, cache="full") as s:
        seq = s.add()
        s.native.observe(np.asarray(WRONG_RUNS[name], np.int32))
        with pytest.raises(SessionError, match="does not fit the step's tokens"):
            s.step([(seq, IDS[:8], "last")])
        assert s.step([(seq, IDS[:8], "last")])[0] is not None


# ------------------------------------------------------------------ what inspect says
@pytest.mark.parametrize(
    "kv",
    [
        "int4(group=32, asym) + recent(64)",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("bf16", "int8(token)", "int4(group=32)")),
    ],
)
def test_the_caches_take_what_the_manifest_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kv: str
) -> None:
    """Resident bytes of long sequences against tokens times bytes per token, within 2%."""
    monkeypatch.setenv("TW_POISON", "0")
    shape = Llama(layers=1, heads=1, kv_heads=1, dim=64, rotary=64, hidden=32, inner=32, vocab=64)
    recipe = resolve_recipe({"base": "f32", "kv": kv, "context": 4096})
    model = load(llama_artifact(shape, recipe, tmp_path), threads=1)
    (state,) = model.manifest.states
    each = state.token_bytes
    exact = state.recent_bytes * np.array([state.recent / (state.recent + 78), 1.0])  # it holds some more
    with model.session(3) as s:
        s.step([(s.add(), IDS[:PROMPT], "none")])
        before = resident()
        for _ in range(2):
            s.step([(s.add(), np.resize(IDS, 4080), "none")])
        low, high = 2 * (4080 * each + exact)
        assert 0.98 * low < resident() - before < 1.02 * high
