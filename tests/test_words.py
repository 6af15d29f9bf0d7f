"""Pages, messages and comments use the field's standard terms: a short list of former spellings is banned.

Each pattern is exact enough to have no false alarm; a line break in the text counts as a space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("ir", "passes", "backends", "compiler", "runtime", "tests", "benchmarks", "docs", "examples")
KINDS = {".py", ".md", ".h", ".hpp", ".cpp", ".c", ".svg", ".toml"}
_UNITS = "row|token|group|channel|plane|tensor|weight|layer|block|sequence|sample"
_NOT = r"(?<![Tt]here )(?<!if there )\b(?:is|are) no"
#: what is banned, and what to write instead
BANNED = {
    r"one-way street|imports? points? (?:left|right)|folders? to its (?:left|right)": "dependency direction",
    rf"\b(?:bits|scales?|one entry|one number|nats) a (?:{_UNITS})\b": "… per …",
    rf"{_NOT} (?:artifacts?|presets?|integers?|numbers?|tensors?|multiple|matrix)\b": "is not a …",
    rf"{_NOT} (?:language model|plain file|power of two|size|operand|proof)\b": "is not a …",
    r"\bwork[ -]lists?\b": "query-block table",
    r"\bone (?:operation|prefetch|flag|line|number|token|group) a (?:line|call|byte|step)\b": "one … per …",
    r"\bhas no form inside\b|\bhangs over an axis\b": "cannot be computed inside, extends past",
    r"\bplain loads?\b": "decoding load",
    r"\bat a running (?:index|channel)\b": "at an index that a loop changes",
    r"\breference meanings?\b": "reference semantics",
    r"\bneighbours (?:are )?(?:asleep|sleep)\b": "no co-tenant load",
    r"\bmodel (?:folder|directory)\b": "checkpoint directory",
    r"\bno channel stands out\b": "to spread outliers",
    r"\bcannot meet groups\b|\bno room of its own\b": "cannot be combined",
    r"\b(?:has no form|without a meaning) here\b": "is not supported",
    r"\bthat cannot be turned\b": "that cannot be rotated",
    r"\bstands? beside\b": "is added to, is stored with",
    r"\bnobody (?:reads|knows)\b": "is not used, is unknown",
    r"\bstands? alone in its region\b": "is the only op of its region",
    r"--level (?:graph|tile|plan|source)\b": "--form …",
}


def texts(repo: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of the README and of every source file and page but this one."""
    yield "README.md", (repo / "README.md").read_text("utf-8")
    for folder in FOLDERS:
        for path in sorted((repo / folder).rglob("*")):
            if path.suffix in KINDS and path != Path(__file__).resolve():
                yield str(path.relative_to(repo)), path.read_text("utf-8")


def banned(text: str) -> list[str]:
    """`found; write …` for every banned spelling in a text."""
    line = re.sub(r"\s+(?:(?:#:?|//) )*", " ", text)
    return [
        f"{line[max(0, m.start() - 30) : m.end()]!r}: write {instead!r}"
        for pattern, instead in BANNED.items()
        for m in re.finditer(pattern, line)
    ]


def test_standard_terms(repo: Path) -> None:
    wrong = [f"{name}: {what}" for name, text in texts(repo) for what in banned(text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "x\none scale a row",
        "bits a\n# weight",
        "'x' is no preset",
        "the work\n    list",
        "a model\n// folder",
        "imports point left",
        "one flag a\n# call",
        "a plain load decodes",
        "what stands\n    # beside the codes",
        "dump m.tw --level tile",
    ],
)
def test_former_spellings_are_found(text: str) -> None:
    assert len(banned(text)) == 1


@pytest.mark.parametrize(
    "text", ["there is no preset", "one scale per row", "bits at a row", "it is no longer so"]
)
def test_other_text_is_not(text: str) -> None:
    assert banned(text) == []
