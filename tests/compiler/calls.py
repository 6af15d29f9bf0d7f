"""Calls of the command line: in a fresh process, or in this one, which is quicker."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tilewright.cli.app import run

#: a tile program that any level runs
COPY = """kernel @copy(%x: f32[M, N], %y: f32[M, N]) {
  grid i in M by 1
  grid j in N by BN
  %a = load %x[i:1, j:BN] : f32[1, BN]
  store %y[i:1, j:BN], %a
  schedule * { BN=16 }
}
"""


def call(*args: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of one call in a fresh process."""
    command = [sys.executable, "-m", "tilewright", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def here(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """The same in this process, without the lines on standard error that tell of progress."""
    code = run([str(a) for a in args])
    out = capsys.readouterr()
    return code, out.out, re.sub(r"^.* …( \d+ of \d+)?\n", "", out.err, flags=re.M)
