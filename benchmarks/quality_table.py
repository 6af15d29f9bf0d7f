"""Encoding x solver x bits per weight x perplexity: `benchmarks/quality_table.py DIR --text FILE [--write]`.

Perplexity over the first windows of 512 tokens of the text, each on its own; solvers that need samples see
the text behind them, so nothing is measured on what it was calibrated on. Beside each solver stands its
difference from round-to-nearest of the same encoding in log perplexity, with the standard error of the paired
windows. `--write` puts the table into docs/quantization.md.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tilewright as tw
from tilewright.calibration.samples import file_ids
from tilewright.ir.encoding_registry import known_encodings
from tilewright.runtime.evaluate import log_softmax, windows_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "quantization.md"
MARKS = ("<!-- table: made by benchmarks/quality_table.py --write -->\n", "<!-- end of table -->\n")
WINDOW = 512
#: samples of 512 tokens that calibrated solvers see
SAMPLES = 48
#: solvers by encoding; `{}` is the encoding, round-to-nearest first
FREE = ("{}", "clip({})", "hqq({})", "lsq({})")
ALL = (*FREE, "gptq({})", "gptq(clip({}))", "gptq(lsq({}))", "awq({})", "awq(gptq({}))")
FITTED = ("{}", "lsq({})", "gptq(lsq({}))")
ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("bf16", ("{}",)),
    ("int8(channel)", ("{}", "smoothquant({})")),
    ("int4(group=64)", ALL),
    ("int4(channel)", ("{}", "gptq({})", "gptq({}, act_order=true)")),
    ("nf4", ("{}", "gptq({})")),
    ("int3(group=64)", ALL),
    ("int3(group=64) + sparse(0.5%)", ("{}", "spqr({})", "gptq({})", "gptq(spqr({}))", "gptq(lsq({}))")),
    ("codebook3", (*FITTED, "wlsq({})", "flsq({})", "gptq(flsq({}))")),
    ("int2(group=64, min)", (*FITTED, "gptq({})")),
    ("planes2(group=64)", FITTED),
)


@dataclass(frozen=True)
class Row:
    """`losses`: nats of every window; `tokens` predicted in each."""

    encoding: str
    stored: str
    bits: float
    losses: NDArray[np.float64]
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.losses.sum() / (len(self.losses) * self.tokens))


def measure(
    directory: Path,
    stored: str,
    encoding: str,
    windows: list[NDArray[np.int64]],
    calibration: NDArray[np.int64],
) -> Row:
    """Compile, run the artifact over the windows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tw"
        tw.compile(
            directory, weights=stored, activations="bf16", calibrate=[calibration], samples=SAMPLES
        ).save(path)
        model = tw.load(path)
        losses = [nats(np.asarray(model(w)), w) for w in windows]
        return Row(encoding, stored, model.manifest.bits_per_weight, np.array(losses), len(windows[0]) - 1)


def nats(logits: NDArray[np.float32], ids: NDArray[np.int64]) -> float:
    p = log_softmax(logits[:-1])
    return float(-p[np.arange(len(p)), ids[1:]].sum())


def line(row: Row, nearest: Row | None) -> str:
    solver = row.stored.replace(row.encoding, "·") if row.stored != row.encoding else "round to nearest"
    more = "–"
    if nearest is not None and nearest is not row:
        d = (row.losses - nearest.losses) / row.tokens
        more = f"{d.mean():+.4f} ± {d.std(ddof=1) / math.sqrt(len(d)):.4f}"
    return f"| {row.encoding} | {solver} | {row.bits:.2f} | {row.perplexity:.3f} | {more} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument(
        "--windows", type=int, default=60, help="windows measured; the text behind them calibrates"
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/quantization.md")
    parser.add_argument("--only", default="", help="encodings whose name contains this")
    args = parser.parse_args()
    ids = file_ids(args.text, args.directory)
    windows = windows_of(ids.tolist(), WINDOW, args.windows)
    rest = ids[len(windows) * WINDOW :]
    lines = [
        "| encoding | solver | bits per weight | perplexity | change of its log |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for encoding, solvers in ROWS:
        if args.only not in encoding or encoding.partition("(")[0] not in known_encodings():
            continue
        nearest = None
        for solver in solvers:
            row = measure(args.directory, solver.format(encoding), encoding, windows, rest)
            nearest = nearest or row
            lines.append(line(row, nearest))
            print(lines[-1], flush=True)
    if args.write:
        page = PAGE.read_text("utf-8")
        before, _, after = page.partition(MARKS[0])
        PAGE.write_text(
            before + MARKS[0] + "\n".join(lines) + "\n" + MARKS[1] + after.partition(MARKS[1])[2], "utf-8"
        )


if __name__ == "__main__":
    main()
