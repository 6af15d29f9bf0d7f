"""Forks share the memory of what they have in common: results and memory, whatever happens to either.

Random forks, truncations, drops and steps, each sequence compared bit by bit with one that was fed its tokens
afresh.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.compiler.test_compiled_llama import llama_artifact
from tests.passes.models import Llama
from tilewright.recipe import resolve_recipe
from tilewright.runtime.errors import SessionError
from tilewright.runtime.model import Model, load
from tilewright.runtime.session import Session

SHAPE = Llama(heads=2, kv_heads=1, dim=16, rotary=16, hidden=32, inner=32, vocab=64)
IDS = np.random.default_rng(5).integers(0, 64, 4000)
CONTEXT = 1100
KINDS: dict[str, dict[str, object]] = {
    "full": {"kv": "f32", "cache": "full"},
    "read together": {"kv": "bf16", "share_prefixes": True, "cache": "full"},
    "recent": {"kv": "int4(group=16, asym) + recent(32)", "share_prefixes": True},
}


@pytest.fixture(scope="module", params=["f32", "bf16", "int8(token)", "full", "read together", "recent"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    recipe = resolve_recipe(
        {"base": "f32", "context": CONTEXT, **KINDS.get(request.param, {"kv": request.param})}
    )
    return load(llama_artifact(SHAPE, recipe, tmp_path_factory.mktemp("shares")), threads=1)


class Sequences:
    """A session, and the tokens that each of its sequences should hold."""

    def __init__(self, s: Session, seed: int) -> None:
        self.s, self.r = s, np.random.default_rng(seed)
        self.ids: dict[int, list[int]] = {}

    def any(self) -> int:
        return int(self.r.choice(list(self.ids)))

    def add(self) -> None:
        if len(self.ids) < self.s.max_sequences:
            self.ids[self.s.add()] = []
            self.step()

    def step(self) -> None:
        work = []
        for seq in self.r.permutation(list(self.ids))[:3].tolist():
            n = int(min(self.r.choice([1, 2, 40, 255, 256, 300]), CONTEXT - len(self.ids[seq])))
            start = int(self.r.integers(0, 3000))
            if n:
                work.append((seq, IDS[start : start + n], None))
                self.ids[seq] += IDS[start : start + n].tolist()
        if work:
            self.s.step(work)

    def fork(self) -> None:
        if len(self.ids) < self.s.max_sequences:
            source = self.any()
            self.ids[self.s.fork(source)] = list(self.ids[source])

    def truncate(self) -> None:
        seq = self.any()
        n = int(self.r.integers(0, len(self.ids[seq]) + 1))
        if 0 < n < self.s.least(seq):
            with pytest.raises(
                SessionError, match=f"{n} tokens: its caches keep exact rows of recent tokens"
            ):
                self.s.truncate(seq, n)
            n = self.s.least(seq)
        self.s.truncate(seq, n)
        del self.ids[seq][n:]

    def drop(self) -> None:
        if len(self.ids) > 1:
            seq = self.any()
            self.s.drop(seq)
            del self.ids[seq]

    def decode(self) -> None:
        """Single tokens of all sequences in one step: those with a common beginning read it together."""
        work = [
            (seq, [int(self.r.integers(0, 64))], None) for seq, ids in self.ids.items() if len(ids) < CONTEXT
        ]
        for seq, new, _ in work:
            self.ids[seq] += new
        if work:
            self.s.step(work)

    def check(self, model: Model) -> None:
        for seq, ids in self.ids.items():
            if 0 < len(ids) < CONTEXT:
                with model.session() as fresh:
                    want = fresh.step([(fresh.add(), [*ids, 7], "last")])[0]
                got = self.s.step([(seq, [7], "last")])[0]
                assert got is not None and want is not None and np.array_equal(got, want)
                ids.append(7)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_each_sequence_is_as_if_alone(model: Model, seed: int) -> None:
    with model.session(5) as s:
        q = Sequences(s, seed)
        q.add()
        moves = [q.add, q.step, q.step, q.fork, q.fork, q.truncate, q.drop, q.decode, q.decode]
        for n in range(60):
            moves[q.r.integers(len(moves))]()
            if n % 20 == 19:
                q.check(model)


def anonymous() -> int:
    """Bytes of this process's own memory."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous"))


def test_forks_take_no_memory_for_what_they_share(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TW_POISON", "0")
    with model.session(40) as s:
        first = s.add()
        before = anonymous()
        s.step([(first, IDS[:1024], None)])
        one = anonymous() - before
        for _ in range(39):
            s.fork(first)
        own = sum(4 * 4096 * c.heads for c in model.manifest.states if c.recent)  # of exact rows, in pages
        assert anonymous() - before - one < 39 * (model.library.sequence_bytes * 0.2 + own)


def test_shared_memory_lives_until_its_last_reader(model: Model) -> None:
    with model.session(3) as s, model.session() as alone:
        want = alone.step([(alone.add(), [*IDS[:600], 3], "last")])[0]
        a = s.add()
        s.step([(a, IDS[:600], None)])
        b = s.fork(a)
        s.drop(a)
        c = s.add()
        s.step([(c, IDS[1000:2000], None)])
        got = s.step([(b, [3], "last")])[0]
        assert got is not None and want is not None and np.array_equal(got, want)


@pytest.mark.parametrize("kv", ["f32", "bf16", pytest.param("int4(group=32)", marks=pytest.mark.slow)])
def test_what_is_read_together_has_the_bits_of_what_is_read_apart(tmp_path: Path, kv: str) -> None:
    """16 sequences over two beginnings, in one step and one by one."""
    shape = Llama(heads=4, kv_heads=2, dim=32, rotary=32, hidden=32, inner=32, vocab=64)
    base = {"base": "f32", "kv": kv, "context": CONTEXT}
    together = load(
        llama_artifact(shape, resolve_recipe({**base, "share_prefixes": True}), tmp_path), threads=2
    )
    with together.session(18) as s, together.session(18) as one:
        for session in (s, one):
            a, b = session.add(), session.add()
            session.step([(a, IDS[:700], None), (b, IDS[1000:1513], None)])
            rows = [session.fork(a if n % 5 else b) for n in range(16)]
        for _ in range(3):
            work = [(seq, [int(IDS[seq])], True) for seq in rows]
            want = [one.step([w])[0] for w in work]
            found = s.step(work)
            assert s.native.together >= 12 and one.native.together == 0
            for got, expected in zip(found, want, strict=True):
                assert got is not None and expected is not None and np.array_equal(got, expected)
