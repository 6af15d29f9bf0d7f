"""Text to policies: what parses, and what the messages say where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from tilewright.runtime.cache import CachePolicy, Protected, known_policies, parse_policy, register_policy
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
        ("quest(2048, block=32)", "quest(budget=2048, block=32)"),
        ("kinetics", "kinetics(budget=0.2)"),
        ("mpcache(0.1, keep=50%)", "mpcache(budget=0.1)"),
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
            (
                "cache: unknown cache policy 'rndom'; did you mean random?\n  help: known: "
                f"{', '.join(known_policies())}"
            ),
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
        ("quest(block=24)", "cache policy quest: block: expected one of 16, 32, 64, 128, 256, got 24"),
        ("kinetics(recent=0)", "cache policy kinetics: recent: expected at least 1, got 0"),
        (
            "quest(budget=63)",
            (
                "cache policy quest: budget: expected at least 64 tokens, got 63: the blocks of the first 4 "
                "and the last 16 tokens are always read, and one more\n"
                "  help: give a larger budget, smaller blocks, or protect fewer"
            ),
        ),
        (
            "random(budget=0)",
            (
                "cache policy random: budget: expected at least 1 tokens, got 0: the first 0 and the last 1 "
                "are protected\n  help: give a larger budget, or protect fewer"
            ),
        ),
        (
            "random(budget=1.5)",
            (
                "cache policy random: budget: expected a number of tokens, or a fraction such as 0.2 or 20%, "
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
                "cache policy random: budget: expected at least 6 tokens, got 5: the first 4 and the last 2 "
                "are protected\n  help: give a larger budget, or protect fewer"
            ),
        ),
        ("snapkv(pool=4)", "cache policy snapkv: pool: expected an odd number, got 4"),
        ("snapkv(window=0)", "cache policy snapkv: window: expected at least 1, got 0"),
        (
            "snapkv(budget=20)",
            (
                "cache policy snapkv: budget: expected at least 32 tokens, got 20: the first 0 and the last "
                "32 are protected\n  help: give a larger budget, or protect fewer"
            ),
        ),
        (
            "windowkv(mode=agregation)",
            "cache policy windowkv: mode: expected aggregation or localization, got 'agregation'",
        ),
        ("windowkv(group=20)", "cache policy windowkv: group: expected at most beta = 14, got 20"),
        (
            "zipvl(tau=0)",
            "cache policy zipvl: tau: expected a share of the attention above 0, at most 1, got 0.0",
        ),
        (
            "scalekv(0.2)",
            "cache policy scalekv: shares: expected a file with one positive number per layer, got ''",
        ),
        ("duo", "cache policy duo: gates: expected a file with one number per KV head, got ''"),
        (
            "trimkv",
            "cache policy trimkv: gates: expected a file with log β per layer, KV head and position, got ''",
        ),
        ("lookm(images=5)", "cache policy lookm: images: expected positions such as 1:577+600:1176, got '5'"),
        ("lookm(how=mean)", "cache policy lookm: how: expected average, pivot or weighted, got 'mean'"),
        (
            "random(0.2",
            (
                "cache: 'random(0.2': expected the form name(option=value, …)\n"
                "  help: for example h2o(budget=0.2)"
            ),
        ),
    ],
)
def test_wrong_text(text: str, message: str) -> None:
    with pytest.raises(SessionError) as e:
        parse_policy(text)
    assert str(e.value) == message


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
