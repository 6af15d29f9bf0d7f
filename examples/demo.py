"""Compile the embedded model with four encodings, let each write a sentence, and print size, quality and speed.

Uses only the command line, as a person would: `make demo`, or `python examples/demo.py` where Tilewright is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "models" / "tiny-llama"
TEXT = ROOT / "LICENSE"  # a text that stays as it is, so that the figures do
ENCODINGS = ("f32", "bf16", "int8(channel)", "int4(group=32)")
PROMPT = "The configuration file"


def tilewright(*arguments: str) -> str:
    """Standard output of the command line; its messages go straight to the terminal."""
    command = [str(Path(sys.executable).parent / "tilewright"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def row(encoding: str) -> tuple[str, ...]:
    artifact = ROOT / "build" / f"demo-{encoding.translate(str.maketrans('(=', '--', ')'))}.tw"
    tilewright("compile", str(MODEL), "-o", str(artifact), "--weights", encoding)
    figures = json.loads(tilewright("eval", str(artifact), "--text", str(TEXT), "--json"))
    words = tilewright("run", str(artifact), "--prompt", PROMPT, "-n", "24")
    size = (artifact / "weights.bin").stat().st_size / 1e6
    return encoding, f"{size:.1f}", f"{figures['perplexity']:.3f}", f"{figures['tok_s']:,.0f}", " ".join(words.split())


def main() -> None:
    table = Table("weights", "MB", "perplexity", "tokens/s", f"after “{PROMPT}”", title=f"{MODEL.name}, on {TEXT.name}")
    for encoding in ENCODINGS:
        table.add_row(*row(encoding))
    Console().print(table)


if __name__ == "__main__":
    main()
