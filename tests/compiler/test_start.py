"""Starting the program: Ctrl-C while it loads, our own warnings, and package errors, each on one line."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from tests.compiler.calls import here
from tilewright.cli import app as cli
from tilewright.cli.app import error_block
from tilewright.ir.errors import TilewrightWarning

#: Ctrl-C arrives while a module of the command line is being loaded
INTERRUPTED = """
import sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
from tilewright.__main__ import main
main()
"""


def test_ctrl_c_while_loading_is_quiet() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ninterrupted\n")


def test_the_program_is_the_module_too() -> None:
    done = subprocess.run([sys.executable, "-m", "tilewright", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("tilewright ")


def test_our_warnings_are_told_and_others_are_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(args: list[str], debug: bool) -> int:
        warnings.warn("a library's", UserWarning, stacklevel=1)
        warnings.warn(TilewrightWarning("ours"), stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "_outcome", outcome)
    assert here(capsys, "doctor") == (0, "", "warning: ours\n")


@pytest.mark.parametrize(
    ("error", "block"),
    [
        (MemoryError("no room"), ("there is not enough memory: no room\n  help: choose smaller sizes, or a "
                                 "larger machine")),
        (ImportError("tokenizers>=0.22 is required"),
         ("a package cannot be loaded: tokenizers>=0.22 is required\n  help: see what `tilewright doctor` "
         "says of it")),
        (OSError(28, "No space left on device", "/x"), "/x: No space left on device"),
        (KeyError("k"), "internal: KeyError: 'k'\n  help: run again with --debug, and report the traceback"),
    ],
)  # fmt: skip
def test_errors_that_are_not_ours(error: Exception, block: str) -> None:
    assert error_block(error) == f"error: {block}"


@pytest.mark.parametrize("option", ["--prompt", "--stop"])
def test_arguments_that_are_no_text(option: str) -> None:
    """Bytes of another encoding, as a terminal in another locale sends them."""
    command = [sys.executable, "-m", "tilewright", "run", "no.tw", "--prompt", "x"]
    done = subprocess.run(
        [*map(str.encode, command), option.encode(), b"\xe9"], capture_output=True, text=True
    )
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr and "internal" not in done.stderr


def test_a_prompt_in_the_c_locale() -> None:
    """Its bytes are UTF-8 whatever the locale says."""
    from tilewright.cli.common import argument

    given = "é".encode().decode("ascii", "surrogateescape")
    code = f"from tilewright.cli.common import argument; print(ascii(argument({given!r}, '--prompt')))"
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout == "'\\xe9'\n", done.stderr
    assert argument("é", "--prompt") == "é"
