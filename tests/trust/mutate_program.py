"""Seeded adversarial mutations of programs: plans with wrong sizes, kernels that reach too far.

In: text and a random generator. Out: text that still parses as a rule, and what was done. Unlike the blind
mutations of `tests/ir/mutate_text.py`, these know what the lines mean, so that many get as far as the proofs.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

NUMBER = re.compile(r"(?<![\w.%@])\d+(?![\w.])")
ODD = ('", 0}; int x = {"', "\r#error", "\\", "??/", "\u2028", "*/", "%n", "\u00e9", "a b", "")
LARGE = (1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 62) + 1, 10**18)
Rng = random.Random


def mutate(text: str, rng: Rng) -> tuple[str, str]:
    """One to three changes, and their names."""
    names = []
    for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3))):
        how = rng.choices(list(HOW), list(HOW.values()))[0]
        text = how(text, rng)
        names.append(how.__name__)
    return text, "+".join(names)


# ------------------------------------------------------------------ pieces of text
def lines_of(text: str, start: str) -> list[int]:
    return [n for n, line in enumerate(text.split("\n")) if line.lstrip().startswith(start)]


def edit(text: str, at: int, change: Callable[[str], str]) -> str:
    lines = text.split("\n")
    lines[at] = change(lines[at])
    return "\n".join(lines)


def pick(text: str, start: str, rng: Rng, change: Callable[[str], str]) -> str:
    """A random line that starts so, changed."""
    found = lines_of(text, start)
    return edit(text, rng.choice(found), change) if found else text


def number(n: int, rng: Rng) -> int:
    near = (n + 1, n - 1, n + 2, 2 * n, n // 2, n + 8, n + 16, n + 64, 3 * n, 0, 1, 16, rng.randrange(100))
    return max(rng.choice(LARGE) if rng.random() < 0.08 else rng.choice(near), 0)


def renumber(line: str, rng: Rng, after: str = "") -> str:
    """One number of a line, behind `after` if that is there, becomes another."""
    from_ = line.find(after) if after else 0
    found = [m for m in NUMBER.finditer(line) if m.start() >= from_ >= 0]
    if not found:
        return line
    m = rng.choice(found)
    return line[: m.start()] + str(number(int(m.group()), rng)) + line[m.end() :]


def symbols(text: str) -> list[str]:
    return re.findall(r"^symbol (\w+) in", text, re.M) or ["T"]


def size(text: str, rng: Rng) -> str:
    """An expression over the program's symbols."""
    s, n = rng.choice(symbols(text)), number(rng.choice((1, 2, 16)), rng)
    return rng.choice((
        f"{n}*{s}", f"{s} + {n}", f"{s} - {n}", str(n), s, f"floor({s}/2)", f"2*ceiling({s}/2)",
        f"Max({s}, {n})",
        f"Min({s}, {n})", f"Mod({s}, 4)", f"{n} - {s}", f"{s}**2", f"floor({n}/{s})", f"{s}/2", "slots", "Q",
    ))  # fmt: skip


# ------------------------------------------------------------------ plans
def binding(text: str, rng: Rng) -> str:
    return pick(
        text, "call ", rng, lambda x: re.sub(r"=[^,}]+(?=[,}])", lambda m: f"={size(text, rng)}", x, count=1)
    )


def room(text: str, rng: Rng) -> str:
    return pick(text, "buffer ", rng, lambda x: renumber(x, rng, " bytes "))


def place(text: str, rng: Rng) -> str:
    """Onto another buffer's place, or near it."""
    places = re.findall(r" at (\d+)$", text, re.M) or ["0"]
    at = int(rng.choice(places)) + rng.choice((0, 0, 0, 64, -64, 4, 32, 1024))
    return pick(text, "buffer ", rng, lambda x: re.sub(r" at \d+$", f" at {max(at, 0)}", x))


def buffer_type(text: str, rng: Rng) -> str:
    """Another dimension or element type of a buffer, an input or a weight; often with room for it."""

    def change(x: str) -> str:
        if rng.random() < 0.2:
            return re.sub(
                r"(?<=: )\w+(?=\[)", rng.choice(("f32", "i32", "bf16", "i8", "bool", "f64")), x, count=1
            )
        wide = re.sub(r" bytes (\d+)", lambda m: f" bytes {int(m[1]) * rng.choice((1, 2, 16))}", x)
        return (
            renumber(wide, rng, "[")
            if rng.random() < 0.5
            else re.sub(r"\[\w+", f"[{size(text, rng)}", wide, count=1)
        )

    return pick(text, rng.choice(("buffer ", "buffer ", "plan @", "weight ")), rng, change)


def arena(text: str, rng: Rng) -> str:
    return re.sub(r" arena (\d+)", lambda m: f" arena {number(int(m[1]), rng)}", text, count=1)


def call_order(text: str, rng: Rng) -> str:
    """A call left out, doubled, or exchanged with another."""
    lines, calls = text.split("\n"), lines_of(text, "call ")
    if not calls:
        return text
    a, b = rng.choice(calls), rng.choice(calls)
    what = rng.randrange(3)
    if what == 0:
        del lines[a]
    elif what == 1:
        lines.insert(b, lines[a])
    else:
        lines[a], lines[b] = lines[b], lines[a]
    return "\n".join(lines)


def arguments(text: str, rng: Rng) -> str:
    """An argument becomes another of the plan's names."""
    known = re.findall(r"[%@][\w.]+(?=[,)])", text) or ["%x"]

    def change(x: str) -> str:
        found = [m for m in re.finditer(r"[%@][\w.]+", x) if m.start() > x.find("(")]
        if not found:
            return x
        m = rng.choice(found)
        return x[: m.start()] + rng.choice(known) + x[m.end() :]

    return pick(text, "call ", rng, change)


def condition(text: str, rng: Rng) -> str:
    if " when " in text and rng.random() < 0.5:
        calls = [n for n in lines_of(text, "call ") if " when " in text.split("\n")[n]]
        return edit(text, rng.choice(calls), lambda x: renumber(x, rng, " when ")) if calls else text
    extra = (
        f" when {rng.choice(symbols(text))} {rng.choice(('<=', '<', '>', '>=', '=='))} "
        f"{rng.choice((0, 1, 3, 4, 8, 64))}"
    )
    return pick(
        text, "call ", rng, lambda x: re.sub(r"(?<=[})])( from |$)", lambda m: extra + m[1], x, count=1)
    )


def symbol_range(text: str, rng: Rng) -> str:
    return pick(text, "symbol ", rng, lambda x: renumber(x, rng))


def state(text: str, rng: Rng) -> str:
    return pick(text, "state ", rng, lambda x: renumber(x, rng))


def meta(text: str, rng: Rng) -> str:
    return pick(text, "meta ", rng, lambda x: renumber(x, rng))


def name(text: str, rng: Rng) -> str:
    """A name of the plan becomes an odd one, everywhere."""
    head, _, plan = text.partition("\nplan @")
    found = re.findall(r"[%@][A-Za-z0-9_]+(?:[.\-][A-Za-z0-9_]+)*", plan)
    if not found:
        return text
    old, new = rng.choice(found), rng.choice(ODD)
    odd = old[0] + json.dumps(new + rng.choice(("", str(rng.randrange(9)))))
    swap = re.compile(re.escape(old) + r"(?![\w.\-])")
    both = swap.sub(lambda m: odd, head) if old[0] == "@" and "kernel " + old not in head else head
    return both + "\nplan @" + swap.sub(lambda m: odd, plan)


def note(text: str, rng: Rng) -> str:
    return pick(
        text,
        "call ",
        rng,
        lambda x: re.sub(r'( from ".*")?$', lambda m: f" from {json.dumps(rng.choice(ODD))}", x, count=1),
    )


# ------------------------------------------------------------------ kernels
def kernel_lines(text: str, rng: Rng) -> tuple[int, int]:
    """First and last line of a kernel, short ones more often."""
    lines = text.split("\n")
    starts = lines_of(text, "kernel @")
    ends = [next(n for n in range(s, len(lines)) if lines[n] == "}") for s in starts]
    return rng.choices(
        list(zip(starts, ends, strict=True)), [1 / (e - s) for s, e in zip(starts, ends, strict=True)]
    )[0]


def kernel_line(text: str, rng: Rng, start: str, change: Callable[[str], str]) -> str:
    lo, hi = kernel_lines(text, rng)
    found = [n for n in lines_of(text, start) if lo <= n <= hi]
    return edit(text, rng.choice(found), change) if found else text


def any_number(text: str, rng: Rng) -> str:
    lo, hi = kernel_lines(text, rng)
    return edit(text, rng.randint(lo, hi), lambda x: renumber(x, rng))


def index(text: str, rng: Rng) -> str:
    """An index of a load or a store reaches elsewhere: shifted, scaled, by another variable."""

    def change(x: str) -> str:
        m = re.search(r"(load|store) %[\w.]+\[(.*?)\]", x)
        if not m or not m[2]:
            return x
        parts = m[2].split(", ")
        k = rng.randrange(len(parts))
        start, _, span = parts[k].partition(":")
        by = number(rng.choice((1, 4, 16)), rng)
        start = rng.choice(
            (
                f"{start} + {by}",
                f"{start} - {by}",
                f"{by}*{start}" if start.isidentifier() else start,
                str(by),
                start,
            )
        )
        span = str(number(int(span), rng)) if span.isdecimal() and rng.random() < 0.3 else span
        parts[k] = f"{start}:{span}" if span else start
        return x[: m.start(2)] + ", ".join(parts) + x[m.end(2) :]

    return kernel_line(text, rng, rng.choice(("store ", "%", "%")), change)


def bounds(text: str, rng: Rng) -> str:
    """A loop or the grid runs further, or elsewhere."""

    def change(x: str) -> str:
        return (
            renumber(x, rng)
            if rng.random() < 0.6
            else re.sub(r" in (\w+)", lambda m: f" in {m[1]} + {number(4, rng)}", x, count=1)
        )

    return kernel_line(text, rng, rng.choice(("grid ", "for ", "%")), change)


def dims(text: str, rng: Rng) -> str:
    """A parameter of another size."""
    return kernel_line(text, rng, "kernel @", lambda x: renumber(x, rng, "("))


def dropped(text: str, rng: Rng) -> str:
    """A store left out, or a local's."""
    lo, hi = kernel_lines(text, rng)
    found = [n for n in lines_of(text, "store ") if lo <= n <= hi]
    lines = text.split("\n")
    if found:
        del lines[rng.choice(found)]
    return "\n".join(lines)


def schedule(text: str, rng: Rng) -> str:
    return kernel_line(text, rng, "schedule ", lambda x: renumber(x, rng, "{"))


def promise(text: str, rng: Rng) -> str:
    """A store declared disjoint, or a range of values that nothing keeps."""
    if rng.random() < 0.5:
        return kernel_line(text, rng, "store ", lambda x: x if x.endswith("disjoint") else x + " disjoint")
    return kernel_line(
        text, rng, "kernel @", lambda x: re.sub(r"(: i32\[[^\]]*\])", r"\1 in 0..3", x, count=1)
    )


def stage(text: str, rng: Rng) -> str:
    value = rng.choice(re.findall(r"^\s+(%\w+) = ", text, re.M) or ["%0"])
    axis = rng.choice(re.findall(r"grid (?:rows )?(\w+) in", text) or ["i"])
    return kernel_line(text, rng, "schedule ", lambda x: x.replace(" }", f"; stage {value} at {axis} }}"))


#: every change and how often
HOW: dict[Callable[[str, Rng], str], int] = {
    binding: 5, room: 3, place: 4, buffer_type: 4, arena: 1, call_order: 5, arguments: 4, condition: 4,
    symbol_range: 2, state: 1,
    meta: 1, name: 4, note: 2, any_number: 6, index: 10, bounds: 5, dims: 4, dropped: 3, schedule: 4,
    promise: 2, stage: 1,
}  # fmt: skip
