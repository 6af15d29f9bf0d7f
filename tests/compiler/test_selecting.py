"""Policies that choose what each token reads, on compiled models: with enough budget they change no bit.

What is chosen is tested in `tests/passes/test_block_choice.py`; here, that sessions ask for it where they
should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.compiler.test_compiled_llama import llama_artifact
from tests.passes.models import Llama
from tilewright.recipe import resolve_recipe
from tilewright.runtime.cache import parse_policy
from tilewright.runtime.errors import SessionError
from tilewright.runtime.model import Model, load
from tilewright.runtime.session import Session

IDS = np.random.default_rng(3).integers(0, 64, 900)
PROMPT, AFTER = 600, 20
SMALL = {"dim": 16, "rotary": 16, "hidden": 32, "inner": 32, "vocab": 64}
#: the policy, the shape, the encoding of the cache
CASES = {
    "quest": ("quest(budget=0.1)", Llama(heads=4, kv_heads=2, **SMALL), "f32"),
    "kinetics": ("kinetics(budget=128, block=32)", Llama(heads=2, kv_heads=1, **SMALL), "int8(token)"),
    "quest, mha": ("quest(budget=0.1, block=64, sinks=0)", Llama(heads=2, kv_heads=2, **SMALL), "bf16"),
    "mpcache": ("mpcache(budget=64, keep=0.5)", Llama(heads=4, kv_heads=2, **SMALL), "f32"),
}
SLOW = set(CASES) - {"quest"}
PARAMS = [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES]

#: those that evict nothing: what was evicted would not come back
KEEPING = [p for p in PARAMS if not parse_policy(CASES[str(p.values[0])][0]).evicts]


class Case:
    """A model compiled with the policy, and one without any: of the first case, as it takes time to compile;
    in other cases sessions of the same model that select nothing."""

    def __init__(self, name: str, folder: Path) -> None:
        self.policy, shape, kv = CASES[name]
        self.model, self.bare = self._compiled(shape, kv, folder / "own", self.policy), None
        if name == next(iter(CASES)):
            self.bare = self._compiled(shape, kv, folder / "all", "")

    @staticmethod
    def _compiled(shape: Llama, kv: str, folder: Path, cache: str) -> Model:
        folder.mkdir()
        recipe = resolve_recipe({"base": "f32", "kv": kv, "cache": cache, "context": 1024})
        return load(llama_artifact(shape, recipe, folder), threads=2)

    def full(self) -> Session:
        """A session in which every token reads everything."""
        return self.bare.session() if self.bare else self.model.session(cache="full")

    @property
    def enough(self) -> str:
        """The same policy with a budget that covers everything."""
        head, _, options = self.policy.partition("(")
        rest = [o.strip() for o in options.rstrip(")").split(",") if "budget" not in o and "keep" not in o]
        return f"{head}({', '.join(['budget=1024', *rest, *(['keep=1.0'] if head == 'mpcache' else [])])})"


@pytest.fixture(scope="module", params=PARAMS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    yield Case(request.param, tmp_path_factory.mktemp("selecting"))


def fed(s: Session, seq: int, start: int = 0, beside: int | None = None) -> NDArray[np.float32]:
    """Logits after the prompt, if the sequence is new, and after single tokens; `beside`: a sequence that is
    given a prompt in the same steps."""
    items = [(0, PROMPT)] if not start else []
    items += [(n, n + 1) for n in range(start or PROMPT, (start or PROMPT) + AFTER)]
    out = []
    for lo, hi in items:
        work = [] if beside is None or hi - lo > 1 else [(beside, IDS[lo - 590 : lo - 587], None)]
        out.append(s.step([*work, (seq, IDS[lo:hi], "last")])[-1])
    return np.concatenate([x for x in out if x is not None])


def test_a_budget_that_suffices_changes_nothing(case: Case) -> None:
    with case.full() as plain, case.model.session(cache=case.enough) as s:
        want = fed(plain, plain.add())
        assert np.array_equal(want, fed(s, s.add()))
    with case.model.session(cache="full") as s:
        assert np.array_equal(want, fed(s, s.add()))


def test_single_tokens_select_and_prompts_do_not_whatever_the_batch(case: Case) -> None:
    with case.full() as plain, case.model.session() as s, case.model.session(2, threads=1) as both:
        all_, own = fed(plain, plain.add()), fed(s, s.add())
        assert np.array_equal(all_[0], own[0]) and not np.array_equal(all_[1], own[1])
        other = both.add()
        assert np.array_equal(own, fed(both, both.add(), beside=other))


def test_a_prompt_in_parts_reads_all_even_if_the_last_is_one_token(case: Case) -> None:
    """The model takes at most 512 tokens in a step: a prompt of 513 ends with a step of one token."""
    with case.full() as plain, case.model.session() as s:
        [a], [b] = plain.step([(plain.add(), IDS[:513], True)]), s.step([(s.add(), IDS[:513], True)])
        assert a is not None and b is not None and np.array_equal(a, b)


def test_forks_drops_and_files(case: Case, tmp_path: Path) -> None:
    with case.model.session(3) as s, case.model.session() as other:
        seq = s.add()
        first = fed(s, seq)
        fork = s.fork(seq)
        s.save(seq, tmp_path / "seq")
        back = other.load(tmp_path / "seq")
        beside = s.fork(fork)
        s.step([(beside, IDS[:1], None)])
        s.drop(beside)
        start = PROMPT + AFTER
        after = fed(s, seq, start)
        assert np.array_equal(after, fed(s, fork, start)) and np.array_equal(after, fed(other, back, start))
        s.drop(seq)
        again = s.add()
        assert np.array_equal(first, fed(s, again))


@pytest.mark.parametrize("case", KEEPING, indirect=True, scope="module")
def test_a_truncated_sequence_goes_on_with_other_tokens(case: Case) -> None:
    """Summaries of the blocks that are written again are not those of before."""
    with case.model.session() as s, case.model.session() as fresh:
        seq, new = s.add(), fresh.add()
        s.step([(seq, IDS[:PROMPT], None)])
        fed(s, seq, PROMPT)
        s.truncate(seq, 400)
        for session, q in ((s, seq), (fresh, new)):
            if q == new and session is fresh:
                session.step([(q, IDS[:400], None)])
            session.step([(q, IDS[500:700], None)])
        assert np.array_equal(fed(s, seq, 600), fed(fresh, new, 600))


# ------------------------------------------------------------------ what is refused
def test_what_an_artifact_does_not_serve(case: Case) -> None:
    with pytest.raises(SessionError) as e:
        case.model.session(cache="kinetics(budget=0.5, block=256)")
    own = parse_policy(case.policy).selects
    assert str(e.value) == (
        f"cache policy kinetics(budget=0.5, block=256): this artifact selects {own}, "
        "not mean(block=256, pool=sum)\n"
        '  help: compile the model with cache="kinetics(budget=0.5, block=256)"'
    )
    if case.bare:
        with pytest.raises(SessionError, match="this artifact selects no blocks, not bound"):
            case.bare.session(cache="quest(budget=0.5)")


@pytest.mark.parametrize(("row", "choice"), [(0, (2, 2, 1)), (0, (2, 0, 0)), (0, (1, -1, 1)), (1, (4, 1, 1))])
def test_choices_that_the_runtime_refuses(case: Case, row: int, choice: tuple[int, int, int]) -> None:
    """More protected blocks than the budget, none at the end, and a token that is not alone in its sequence;
    none is left for the next step."""
    with case.model.session(cache="full") as s:
        seq = s.add()
        s.native.choose(row, *choice)
        with pytest.raises(SessionError, match="tw_choose: token"):
            s.step([(seq, IDS[: 1 + row], None)])
        s.step([(seq, IDS[: 1 + row], None)])


def test_a_model_without_a_choice_takes_none(case: Case) -> None:
    if case.bare:
        wanted = "the model selects no blocks; compile with a cache policy that does"
        with case.bare.session() as s, pytest.raises(SessionError, match=wanted):
            s.native.choose(0, 4, 1, 1)
