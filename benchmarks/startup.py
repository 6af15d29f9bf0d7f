"""How long starting takes: `import tilewright.runtime` and `tilewright --help`, medians of fresh processes.

In: nothing. Out: two lines in milliseconds (or `--json`), beside the bare interpreter's own start.
Usage: `python benchmarks/startup.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

#: what neither may take longer than, in milliseconds
LIMIT = 150.0


def median_ms(command: Sequence[str], repeats: int) -> float:
    """Wall time of a fresh process, the first (cold) one not counted."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description="Start-up times, medians of fresh processes.")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    beside = Path(sys.executable).parent / "tilewright"
    program = (
        [str(beside)]
        if beside.exists()
        else [sys.executable, "-c", "from tilewright.cli.app import main; main()"]
    )
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import tilewright.runtime": [sys.executable, "-c", "import tilewright.runtime"],
        "tilewright --help": [*program, "--help"],
    }
    found = {name: round(median_ms(command, args.repeats), 1) for name, command in commands.items()}
    print(
        json.dumps(found, indent=1)
        if args.json
        else "\n".join(f"{name:28} {ms:7.1f} ms" for name, ms in found.items())
    )
    return int(max(found.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
