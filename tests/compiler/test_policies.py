"""Every built-in policy on a compiled model: within its budget, and the same rows for any threads and batch.

The rules of each are tested over NumPy arrays (`tests/runtime/cache`); here the rows, scores, keys and values
are those of a native session.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.compiler.test_compiled_llama import llama_artifact
from tests.passes.models import Llama
from tilewright.recipe import resolve_recipe
from tilewright.runtime.cache import CacheAccess, parse_policy
from tilewright.runtime.cache.registry import HOMES
from tilewright.runtime.errors import SessionError
from tilewright.runtime.model import Model, load
from tilewright.runtime.session import Session

SHAPE = Llama(hidden=64, inner=96, vocab=64)
IDS = np.random.default_rng(3).integers(0, 64, 400)
PROMPT, AFTER = 200, 21
#: policies with budgets that the prompt exceeds, and the rows that a head then has on average
TIGHT = {
    "window(recent=0.25)": 50,
    "random(budget=0.25)": 50,
    "h2o(budget=0.25)": 50,
    "tova(budget=0.25)": 50,
    "snapkv(budget=0.25)": 50,
    "pyramidkv(budget=0.25)": 50,
    "windowkv(budget=0.25)": 50,
    "zipvl(tau=0.5)": 120,
    "prefixkv(budget=0.25)": 50,
    "elastic(budget=0.25)": 50,
    "d2o(budget=0.25)": 50,
    "lookm(budget=0.25, images=10:150)": 50,
    "scalekv(budget=0.25, shares=FOLDER/shares.npy)": 50,
    "duo(gates=FOLDER/gates.npy, full=0, sinks=4, recent=46)": 50,
    "trimkv(budget=0.25, gates=FOLDER/decay.npy)": 50,
}
LOOSE = [
    "h2o(budget=1000)",
    "snapkv(budget=1.0)",
    "d2o(budget=1000)",
    "elastic(budget=1000)",
    "prefixkv(budget=1000)",
    "zipvl(tau=1)",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    recipe = resolve_recipe({"base": "f32", "cache": "full", "context": 1024})
    return load(llama_artifact(SHAPE, recipe, tmp_path_factory.mktemp("policies")), threads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbers for the policies that are supplied with some."""
    out, draw = tmp_path_factory.mktemp("tables"), np.random.default_rng(5)
    np.save(out / "shares.npy", draw.uniform(1, 2, SHAPE.layers))
    np.save(out / "gates.npy", draw.random((SHAPE.layers, SHAPE.kv_heads)))
    np.save(out / "decay.npy", -draw.random((SHAPE.layers, SHAPE.kv_heads, 400)))
    return out


def fed(s: Session, seq: int, beside: int | None = None) -> np.ndarray:
    """Logits after the prompt and after single tokens; `beside`: another sequence in the same steps."""
    out = []
    for lo, hi in [(0, PROMPT), *((n, n + 1) for n in range(PROMPT, PROMPT + AFTER))]:
        work = [] if beside is None else [(beside, IDS[lo + 50 : hi + 50], None)]
        out.append(s.step([*work, (seq, IDS[lo:hi], "last")])[-1])
    return np.concatenate([x for x in out if x is not None])


def rows_of(s: Session, seq: int) -> list[list[np.ndarray]]:
    """Positions by layer and head."""
    assert s.caches is not None
    cache: CacheAccess = s.caches.access(seq)
    return [[cache.positions(n, h) for h in range(cache.heads(n))] for n in range(cache.layers)]


def test_every_policy_is_here() -> None:
    others = {"full", *(n for n, home in HOMES.items() if home == "selecting")}  # test_selecting.py
    assert {t.partition("(")[0] for t in TIGHT} == set(HOMES) - others


@pytest.mark.parametrize("text", TIGHT)
def test_rows_are_within_the_budget_whatever_the_batch_and_the_threads(
    model: Model, folder: Path, text: str
) -> None:
    policy = parse_policy(text.replace("FOLDER", str(folder)))
    with model.session(cache=policy) as alone, model.session(2, threads=1, cache=policy) as both:
        a, other = alone.add(), both.add()
        b = both.add()
        assert np.array_equal(fed(alone, a), fed(both, b, other))
        one, two = rows_of(alone, a), rows_of(both, b)
        since = AFTER % policy.every if policy.decodes else AFTER
        for rows, same in zip(one, two, strict=True):
            for x, y in zip(rows, same, strict=True):
                assert np.array_equal(x, y) and (np.diff(x) > 0).all() and x[-1] == PROMPT + AFTER - 1
        mean = np.mean([len(x) for layer in one for x in layer])
        assert mean <= TIGHT[text] + since


@pytest.mark.parametrize("text", LOOSE)
def test_a_budget_that_suffices_changes_nothing(model: Model, text: str) -> None:
    with model.session(cache="full") as plain, model.session(cache=text) as s:
        assert np.array_equal(fed(plain, plain.add()), fed(s, s.add()))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Integers in the cache, compiled for a policy that looks at no attention."""
    recipe = resolve_recipe(
        {"base": "f32", "kv": "int8(token)", "cache": "window(recent=64)", "context": 1024}
    )
    shape = replace(SHAPE, dim=16, rotary=16)
    return load(llama_artifact(shape, recipe, tmp_path_factory.mktemp("packed")), threads=2)


def test_a_compiled_policy_is_the_sessions_own(packed: Model) -> None:
    with packed.session() as s:
        seq = s.add()
        fed(s, seq)
        assert str(s.policy) == "window(recent=64)"
        assert all(len(x) == 4 + 64 + AFTER % 16 for layer in rows_of(s, seq) for x in layer)


@pytest.mark.parametrize(
    ("text", "message", "help"),
    [
        (
            "elastic(budget=0.25)",
            "a cache of packed rows cannot be read or written by a policy",
            "compile with kv=bf16, f16 or f32, or choose a policy that does not merge or read tokens",
        ),
        (
            "h2o(budget=0.25)",
            "needs the attention that tokens receive, which this artifact does not record",
            'compile it with cache="h2o(budget=0.25)", or use a policy that needs none, such as window',
        ),
    ],
)
def test_what_an_artifact_does_not_serve(packed: Model, text: str, message: str, help: str) -> None:
    with pytest.raises(SessionError) as e:
        packed.session(cache=text)
    assert str(e.value) == f"cache policy {text}: {message}\n  help: {help}"
