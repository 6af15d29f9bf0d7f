"""The tutorial of `docs/extending.md`: a policy of five lines, as the page shows it."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from tests.runtime.cache.fake import FakeCache, feed
from tilewright.runtime.cache import CacheManager, CachePolicy, Protected, known_policies, parse_policy
from tilewright.runtime.cache.registry import _REGISTRY, HOMES, register_policy
from tilewright.runtime.errors import SessionError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def text() -> str:
    section = (ROOT / "docs" / "extending.md").read_text("utf-8").partition("## A cache policy\n")[2]
    found = re.search(r"^```python\n(.*?)^```", section, re.S | re.M)
    assert found is not None
    return found[1]


def test_five_lines_are_a_policy(text: str) -> None:
    body = text.partition("@register_policy")[2]
    assert len([line for line in body.splitlines() if line.strip()]) == 4, "five with the decorator"
    try:
        exec(compile(text, "docs/extending.md", "exec"), {"__name__": "tutorial"})
        policy = parse_policy("strided(budget=0.25, sinks=4, recent=3)")
        assert "strided" in known_policies() and parse_policy(str(policy)) == policy
        cache = FakeCache([(6, 2), (4, 4)])
        feed(cache, CacheManager(policy), 80)
    finally:
        _REGISTRY.pop("strided", None)
    wanted = [0, 1, 2, 3, *range(4, 53, 4), 77, 78, 79]  # a quarter of 80
    assert all(cache.positions(0, head).tolist() == wanted for head in range(2))
    assert all(cache.positions(1, head).tolist() == wanted for head in range(4))


def test_the_pages_name_every_hook_and_every_policy() -> None:
    extending = (ROOT / "docs" / "extending.md").read_text("utf-8")
    hooks = ("budgets", "admit", "protected", "score", "select", "leader", "merge", "evict")
    assert all(callable(getattr(CachePolicy, h)) and f"| `{h}(cache" in extending for h in hooks)
    page = (ROOT / "docs" / "cache.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)(?:\((.*?)\))?` \|", page, re.M))
    assert set(rows) == set(HOMES)
    for name, options in rows.items():
        kind = type(parse_policy(f"{name}({options})".replace("images=1:577, ", "")))
        stated = [o.partition("=")[0] for o in options.split(", ") if o]
        assert sorted(stated) == sorted(f.name for f in fields(kind))
        given = parse_policy(f"{name}({options})")
        for field in fields(kind):
            value = getattr(given, field.name)
            assert value == field.default or value in ("FILE", "1:577"), f"{name}: {field.name}"


def test_options_need_the_dataclass_decorator() -> None:
    class Mine(Protected):
        name = "mine"
        depth: int = 3

    with pytest.raises(SessionError) as e:
        register_policy(Mine)
    assert str(e.value) == (
        "register_policy(Mine): depth: not an option yet\n"
        "  help: write @dataclass(frozen=True) between this decorator and the class"
    )
