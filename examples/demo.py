"""Compiles the embedded model with ever fewer bits and prints size, perplexity, exact recall and speed.

Compiles and measures perplexity by the command line, as a user would, and asks questions through Python:
`make demo`, or `python examples/demo.py` where Tilewright is installed. Text and questions are always the
same; only the speed varies.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import tilewright as tw
from tilewright.runtime.model import Model
from tilewright.runtime.recall import questions, recall

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "models" / "small-llama"
TEXT = ROOT / "examples" / "heldout.txt"
WEIGHTS = ("bf16", "int4(group=32)", "int4(channel)", "int3(group=32)")
#: (tokens between fact and question, other facts in between)
DISTANCES = ((128, 0), (1024, 31), (3500, 31))
QUESTIONS, WINDOWS = 12, 20
HEAD = ("weights", "MB", "perplexity", *(f"recall {d}" for d, _ in DISTANCES), "tokens/s")


def tilewright(*arguments: str) -> str:
    """Standard output of the command line; its messages go straight to the terminal."""
    command = [str(Path(sys.executable).parent / "tilewright"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def row(weights: str) -> tuple[str, ...]:
    artifact = ROOT / "build" / f"demo-{''.join(c if c.isalnum() else '-' for c in weights)}.tw"
    tilewright("compile", str(MODEL), "-o", str(artifact), "--weights", weights)
    figures = json.loads(
        tilewright("eval", str(artifact), "--text", str(TEXT), "--windows", str(WINDOWS), "--json")
    )
    model = tw.load(artifact)
    filler = model.codec.encode(TEXT.read_text("utf-8"), special=False)
    right = [recalled(model, filler, distance, others) for distance, others in DISTANCES]
    speed = model.generate(filler[:128], max_new_tokens=128, temperature=0).decode_tok_s
    size = (artifact / "weights.bin").stat().st_size / 1e6
    return (
        weights,
        f"{size:.1f}",
        f"{figures['perplexity']:.3f}",
        *(f"{n}/{QUESTIONS}" for n in right),
        f"{speed:,.0f}",
    )


def recalled(model: Model, filler: list[int], distance: int, others: int) -> int:
    """How many questions the model answers to the digit."""

    def encode(text: str) -> list[int]:
        return model.codec.encode(text, special=False)

    with model.session() as session:
        return sum(recall(session, questions(encode, filler, distance, others, QUESTIONS)))


def line(cells: tuple[str, ...]) -> str:
    first, *rest = (cell.ljust(max(len(head) + 2, 8)) for cell, head in zip(cells, HEAD, strict=True))
    return (first.ljust(17) + "".join(rest)).rstrip()


def main() -> None:
    rows = [row(weights) for weights in WEIGHTS]
    print(
        f"{MODEL.name}: perplexity on {TEXT.name}; of {QUESTIONS} codes, those recalled to the digit after "
        "so many tokens"
    )
    print(*map(line, (HEAD, *rows)), sep="\n")


if __name__ == "__main__":
    main()
