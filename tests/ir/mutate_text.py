"""Seeded mutations of IR text; as a program, reads and verifies each mutant in a process that may crash.

`python mutate_text.py FOLDER FIRST COUNT` takes the texts of FOLDER in turn and prints one line per seed: the
seed, what was done, what came of it: `error KIND` (a clean one, that says where), or `ok` if it verifies and
prints and parses to itself. Anything else ends the program with the exception that escaped.
"""

from __future__ import annotations

import random
import re
import resource
import signal
import sys
from pathlib import Path
from types import FrameType

TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|[%@]?[\w.]+|[^\w\s]')
NUMBER = re.compile(r"(?<![\w.])-?\d+(?![\w.])")
NAME = re.compile(r"[%@][\w.]+")
HUGE = (
    "0", "-1", "1", "7", "255", "65536", "2147483647", "2147483648", "4294967296", "1099511627776",
    "9223372036854775807",
    "9223372036854775808", "-9223372036854775809", "9" * 18, "9" * 400, "1e308", "1e999", "0x10", "1.5",
    "007", "nan", "T", "",
)  # fmt: skip
ODD = (
    "\0",
    "\u2028",
    "é",
    "\ud800",
    '"',
    "\\",
    "#",
    "{",
    "}",
    "[",
    "(",
    ")",
    "]",
    ",",
    "=",
    "%",
    "@",
    "\t",
    "\r",
    "//",
    "..",
)
SECONDS, MEMORY, LONGEST = 10, 2 << 30, 4000


def mutate(text: str, rng: random.Random) -> tuple[str, str]:
    """The damaged text and what was done."""
    kinds = (
        _delete,
        _delete,
        _swap,
        _swap,
        _digit,
        _huge,
        _huge,
        _duplicate,
        _line,
        _lines,
        _rename,
        _character,
        _cut,
        _many,
    )
    how = rng.choice(kinds)
    out, names = text, []
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        out = how(out, rng)
        names.append(how.__name__.strip("_"))
        how = rng.choice(kinds)
    return out, "+".join(names)


def _pick(pattern: re.Pattern[str], text: str, rng: random.Random) -> re.Match[str] | None:
    """A random match, looked for from a random place on."""
    at = rng.randrange(len(text) + 1)
    return pattern.search(text, at) or pattern.search(text)


def _put(text: str, m: re.Match[str] | None, by: str) -> str:
    return text if m is None else text[: m.start()] + by + text[m.end() :]


def _delete(text: str, rng: random.Random) -> str:
    return _put(text, _pick(TOKEN, text, rng), "")


def _swap(text: str, rng: random.Random) -> str:
    a, b = _pick(TOKEN, text, rng), _pick(TOKEN, text, rng)
    if a is None or b is None or a.start() >= b.start():
        return text
    return text[: a.start()] + b.group() + text[a.end() : b.start()] + a.group() + text[b.end() :]


def _digit(text: str, rng: random.Random) -> str:
    return _put(text, _pick(re.compile(r"\d"), text, rng), str(rng.randrange(10)))


def _huge(text: str, rng: random.Random) -> str:
    return _put(text, _pick(NUMBER, text, rng), rng.choice(HUGE))


def _duplicate(text: str, rng: random.Random) -> str:
    m = _pick(TOKEN, text, rng)
    return text if m is None else _put(text, m, " ".join([m.group()] * rng.choice((2, 2, 3, 50))))


def _line(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    n = rng.randrange(len(lines))
    return "\n".join(lines[:n] + lines[n : n + 1] * rng.choice((0, 0, 2)) + lines[n + 1 :])


def _lines(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    return "\n".join(lines)


def _rename(text: str, rng: random.Random) -> str:
    other = _pick(NAME, text, rng)
    return _put(text, _pick(NAME, text, rng), other.group() if other else "%x")


def _character(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(ODD) + text[at + rng.randrange(2) :]


def _cut(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] if rng.random() < 0.5 else text[at:]


def _many(text: str, rng: random.Random) -> str:
    """Deep nesting, long sums, towers of powers: in place of a number."""
    n = rng.choice((20, 300, 20000))
    made = rng.choice(
        (
            "(" * n + "1" + ")" * n,
            "[" * n,
            "1 + " * n + "1",
            "T*" * n + "T",
            "2**" * n + "2",
            "-" * n + "1",
            "{" * n,
        )
    )
    return _put(text, _pick(NUMBER, text, rng), made)


# ------------------------------------------------------------------ what comes of it
def outcome(text: str) -> str:
    from tilewright.ir.errors import TilewrightError
    from tilewright.ir.text.plan_parser import parse_ir
    from tilewright.ir.text.tile_printer import print_kernels
    from tilewright.ir.tile.verify import verify_kernel
    from tilewright.passes.driver import verify_ir
    from tilewright.passes.record import print_ir

    try:
        ir = parse_ir(text, "mutant.ir")
        if isinstance(ir, tuple):
            for k in ir:
                verify_kernel(k)
        else:
            verify_ir(ir)
    except TilewrightError as e:
        said = str(e)
        assert e.where and e.message.strip() and len(said) < LONGEST, (
            f"where {e.where!r}, {len(said)} characters: {said[:3000]}"
        )
        return f"error {e.kind}"
    shown = print_kernels(ir) if isinstance(ir, tuple) else print_ir(ir)
    again = parse_ir(shown, "printed.ir")
    assert again == ir and (print_kernels(again) if isinstance(again, tuple) else print_ir(again)) == shown, (
        "prints otherwise"
    )
    return "ok"


def _late(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"a mutant takes more than {SECONDS} seconds of CPU time")


def main(folder: Path, first: int, count: int) -> None:
    texts = [p.read_text() for p in sorted(folder.iterdir())]
    outcome(texts[0])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, _late)
    for seed in range(first, first + count):
        text, what = mutate(texts[seed % len(texts)], random.Random(seed))
        print(f"{seed} | {what} |", end=" ", flush=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of CPU time: other work may share the machine
        print(outcome(text), flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
