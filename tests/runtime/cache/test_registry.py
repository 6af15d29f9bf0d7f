"""Text to policies: what parses, and what the messages say where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from tilewright.runtime.cache import CachePolicy, Protected, parse_policy, register_policy
from tilewright.runtime.errors import SessionError


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("full", "full"),
        (" full( ) ", "full"),
        ("random(0.25)", "random(budget=0.25)"),
        ("random(25%, seed = 7)", "random(budget=0.25, seed=7)"),
        ("random(budget=512)", "random(budget=512)"),
        ("window", "window"),
        ("window(sinks=4, recent=100)", "window(recent=100)"),
    ],
)
def test_text_is_read(text: str, printed: str) -> None:
    assert str(parse_policy(text)) == printed


def test_a_policy_is_returned_as_it_is() -> None:
    policy = parse_policy("random(0.25)")
    assert parse_policy(policy) is policy
    made = type(policy)(budget=np.int64(30))  # type: ignore[call-arg]
    assert made == parse_policy("random(30)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "rndom(0.2)",
            "cache: unknown cache policy 'rndom'; did you mean random or window?\n  help: known: ",
        ),
        (
            "random(bugdet=0.2)",
            (
                "cache policy random: unknown option 'bugdet'; did you mean budget?\n"
                "  help: its options: budget, sinks, recent, slack, seed"
            ),
        ),
        ("full(sinks=1)", "cache policy full: unknown option 'sinks'\n  help: it has no options"),
        ("full(3)", "cache policy full: '3': expected at most 0 options"),
        (
            "random(budget=0)",
            (
                "cache policy random: budget: expected a number of tokens from 1, or a fraction such as 0.2 or 20%, "
                "got 0"
            ),
        ),
        (
            "random(budget=1.5)",
            (
                "cache policy random: budget: expected a number of tokens from 1, or a fraction such as 0.2 or 20%, "
                "got 1.5"
            ),
        ),
        ("random(sinks=0.5)", "cache policy random: sinks: expected a whole number from 0, got 0.5"),
        ("random(sinks=few)", "cache policy random: sinks: expected a whole number from 0, got 'few'"),
        ("random(slack=0)", "cache policy random: slack: expected at least 1, got 0"),
        ("window(slack=0)", "cache policy window: slack: expected at least 1, got 0"),
        ("random(0.2, budget=0.3)", "cache policy random: option 'budget' is given twice"),
        (
            "random(budget=5, sinks=4, recent=2)",
            (
                "cache policy random: a budget of 5 tokens is smaller than the 6 protected ones (4 sinks, 2 recent)\n"
                "  help: give budget at least 6, or protect fewer"
            ),
        ),
        (
            "random(0.2",
            "cache: 'random(0.2': expected the form name(option=value, …)\n  help: for example h2o(budget=0.2)",
        ),
    ],
)
def test_wrong_text(text: str, message: str) -> None:
    with pytest.raises(SessionError) as e:
        parse_policy(text)
    assert str(e.value).startswith(message) if message.endswith("known: ") else str(e.value) == message


def test_a_value_that_is_neither_text_nor_a_policy() -> None:
    with pytest.raises(
        SessionError, match=r"expected text such as h2o\(budget=0.2\), or a policy, got a list"
    ):
        parse_policy([])  # type: ignore[arg-type]


def test_a_name_is_registered_once() -> None:
    @dataclass(frozen=True)
    class Mine(CachePolicy):
        name: ClassVar[str] = "random"

    with pytest.raises(SessionError, match="cache policy 'random' is registered twice"):
        register_policy(Mine)
    Mine.name = "my policy"
    with pytest.raises(SessionError, match="name: expected an identifier, got 'my policy'"):
        register_policy(Mine)


def test_options_of_other_types_are_refused() -> None:
    @dataclass(frozen=True)
    class Odd(Protected):
        name: ClassVar[str] = "odd"
        table: tuple[int, ...] = ()

    with pytest.raises(SessionError, match="table: options are of type int, float, str, bool or Budget"):
        Odd()
