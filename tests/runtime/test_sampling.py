"""Sampling: each filter against its definition, order and ties, and draws fixed by seed and position."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.runtime.errors import SessionError
from tilewright.runtime.sampling import Sampling, choose, filtered, penalize, uniform


def row(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def test_greedy_takes_the_lowest_of_equals() -> None:
    assert choose(row(1, 3, 3, 2), [], Sampling()) == 1


def test_top_k_keeps_k_and_prefers_lower_ids_on_ties() -> None:
    order, p = filtered(row(1, 2, 2, 2).astype(np.float64), Sampling(1.0, top_k=2))
    assert order.tolist() == [1, 2] and p.tolist() == [0.5, 0.5]


def test_top_p_is_the_smallest_set_that_holds_the_mass() -> None:
    scores = np.log(np.asarray([0.5, 0.3, 0.15, 0.05]))
    assert len(filtered(scores, Sampling(1.0, top_p=0.5))[0]) == 1
    assert len(filtered(scores, Sampling(1.0, top_p=0.51))[0]) == 2
    assert len(filtered(scores, Sampling(1.0, top_p=0.81))[0]) == 3
    assert len(filtered(scores, Sampling(1.0, top_p=0.0))[0]) == 1


def test_min_p_is_relative_to_the_likeliest() -> None:
    scores = np.log(np.asarray([0.5, 0.3, 0.15, 0.05]))
    assert len(filtered(scores, Sampling(1.0, min_p=0.25))[0]) == 3
    assert len(filtered(scores, Sampling(1.0, min_p=1.0))[0]) == 1


def test_the_filters_agree_with_transformers() -> None:
    import torch
    from transformers.generation import logits_process as lp

    scores = np.random.default_rng(0).normal(0, 3, 500)
    history = [3, 7, 7, 400]
    how = Sampling(0.7, 50, 0.9, 0.02, 1.3)
    chain = [
        lp.RepetitionPenaltyLogitsProcessor(1.3), lp.TemperatureLogitsWarper(0.7), lp.TopKLogitsWarper(50),
        lp.TopPLogitsWarper(0.9), lp.MinPLogitsWarper(0.02),
    ]  # fmt: skip
    theirs = torch.tensor(scores)[None]
    for f in chain:
        theirs = f(torch.tensor([history]), theirs)
    order, p = filtered(penalize(scores, history, 1.3) / 0.7, how)
    left = torch.softmax(theirs[0], -1).numpy()
    assert set(order.tolist()) == set(np.flatnonzero(left).tolist())
    assert np.allclose(p / p.sum(), left[order], atol=1e-12)


def test_the_penalty_pushes_both_signs_down() -> None:
    out = penalize(np.asarray([2.0, -2.0, 1.0]), [0, 1, 99, -5], 2.0)
    assert out.tolist() == [1.0, -4.0, 1.0]


def test_draws_follow_the_distribution_and_the_seed() -> None:
    logits = np.log(row(0.6, 0.3, 0.1))
    how = Sampling(1.0, seed=5)
    draws = [choose(logits, [0] * n, how) for n in range(4000)]
    assert draws == [choose(logits, [0] * n, how) for n in range(4000)]
    assert np.allclose(np.bincount(draws) / 4000, [0.6, 0.3, 0.1], atol=0.03)
    assert draws != [choose(logits, [0] * n, Sampling(1.0, seed=6)) for n in range(4000)]


def test_draws_never_change() -> None:
    """A seed in a bug report must mean the same next year."""
    assert [round(uniform(0, n), 6) for n in range(3)] == PINNED


PINNED = [0.011547, 0.50238, 0.253823]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature: expected 0 to 1e+06, got -1"),
        ({"temperature": float("nan")}, "temperature: expected"),
        ({"top_p": 1.5}, "top_p: expected 0 to 1, got 1.5"),
        ({"top_k": -2}, "top_k: expected"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected 0.001 to 1000, got 0"),
        ({"seed": -1}, "seed: expected 0 to 2"),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(SessionError) as e:
        Sampling(**options)
    assert message in str(e.value)


@pytest.mark.parametrize("bad", [row(1, np.nan), row(np.inf, 1), row(-np.inf, -np.inf)])
def test_logits_that_are_no_numbers(bad: np.ndarray) -> None:
    with pytest.raises(SessionError, match="the logits are not finite"):
        choose(bad, [], Sampling())
