"""Index checks as the runtime reads them: sizes known at run time, and inconsistent manifests."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.runtime.checks import read_checks
from tilewright.runtime.errors import ArtifactError, SessionError

NAMES = ["check_0.beyond", "check_1.before"]


def look(
    size: object, least: object, gap: float, name: int = 0, origin: str = "ids", place: str = "m.py:3"
) -> None:
    (check,) = read_checks({"checks": [[NAMES[name], origin, least, size, "w", 1, place]]}, NAMES)
    check.look(np.float32(gap), {"B": 7})


def test_inside_is_silent() -> None:
    for gap in (0.0, -3.0, -np.inf):  # the largest index less the last place; of no indices at all
        look(10, 0, gap)
    for gap in (0.0, 3.0, np.inf):
        look(10, 0, gap, 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            (10, 0, 2.0),
            "input ids: index 11: expected 0 to 9, of w along axis 1\n  help: it is read at m.py:3",
        ),
        (
            (10, -10, -1.0, 1),
            "input ids: index -11: expected -10 to 9, of w along axis 1\n  help: it is read at m.py:3",
        ),
        (
            ("B", "-B", 1.0),
            "input ids: index 7: expected -7 to 6, of w along axis 1\n  help: it is read at m.py:3",
        ),
        (
            ("B", "-B", -1.0, 1),
            "input ids: index -8: expected -7 to 6, of w along axis 1\n  help: it is read at m.py:3",
        ),
        (
            ("2*B", 0, 1.0),
            "input ids: index ?: expected 0 to 2*B - 1, of w along axis 1\n  help: it is read at m.py:3",
        ),
        (
            (10, 0, 1.0, 0, "", ""),
            "an index computed by the model: index 10: expected 0 to 9, of w along axis 1",
        ),
    ],
)
def test_outside_is_named(args: tuple[object, ...], message: str) -> None:
    with pytest.raises(SessionError) as e:
        look(*args)  # type: ignore[arg-type]
    assert str(e.value) == message


@pytest.mark.parametrize(
    "bad", [3, "x", [3], [["check_0.beyond"]], [["check_0.beyond", "", 0, 1.5, "w", 0, ""]], {"a": 1}]
)
def test_no_checks(bad: object) -> None:
    with pytest.raises(ArtifactError, match=r"manifest.json: meta.checks: not a check: "):
        read_checks({"checks": bad}, NAMES)


def test_a_check_of_no_result() -> None:
    with pytest.raises(ArtifactError, match=r"manifest.json: meta.checks and the graph disagree"):
        read_checks({"checks": [["other", "", 0, 1, "w", 0, ""]]}, NAMES)
    assert read_checks({}, NAMES) == ()
