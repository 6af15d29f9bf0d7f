"""The command line: exit codes, one-block errors, suggestions, JSON, and a start that loads nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.compiler.calls import call, here
from tests.runtime.stub import expected_next, stub_program
from tilewright.cli.app import COMMANDS, cli
from tilewright.cli.common import human_bytes, load_plugin
from tilewright.cli.compile import Shown, pick
from tilewright.ir.errors import RefusedError
from tilewright.passes.record import print_ir
from tilewright.runtime.busy import Load, LoadWatch


def test_help_names_every_command_and_loads_little() -> None:
    code, out, _ = call("--help")
    assert code == 0 and all(name in out for name in COMMANDS)
    loaded = _loaded("from tilewright.cli.app import main; main()", "--help")
    assert not loaded & HEAVY and len(loaded) < 250


def test_importing_the_runtime_loads_little() -> None:
    loaded = _loaded("import tilewright.runtime")
    assert not loaded & HEAVY and len(loaded) < 120


#: packages that take longer to load than a command may take to answer
HEAVY = {"torch", "numpy", "transformers", "triton", "sympy", "networkx", "lark", "tokenizers", "jinja2"}


def _loaded(code: str, *arguments: str) -> set[str]:
    """Names of the modules that a new Python process has loaded after this code."""
    told = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    command = [sys.executable, "-c", f"{told}\n{code}", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return set(done.stderr.split())


def test_a_heavy_module_is_seen() -> None:
    assert "numpy" in _loaded("import tilewright.runtime, numpy") & HEAVY


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = CliRunner().invoke(cli, [command, "--help"])
    assert done.exit_code == 0 and "Usage" in done.output


def test_the_options_are_those_of_the_manual() -> None:
    wanted = {
        "compile": "-o --recipe --weights --activations --target --passes --adapter --plugin --json",
        "run": ("--prompt -n --temperature --top-k --top-p --min-p --seed --stop --set --json "
               "--repetition-penalty"),
        "inspect": "--json", "dump": "--stage --after --form --plugin",
        "opt": "--passes --verify-each --check-each --print-ir-after --plugin",
        "exec": "--input --json --plugin",
        "eval": "--text --against --window --json", "bench":
        "--prefill --decode --context --batch --threads --json",
        "tune": "-o --recipe --target --threads", "doctor": "--json",
    }  # fmt: skip
    assert set(wanted) == set(COMMANDS)
    for name, options in wanted.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        have = {o for p in command.params for o in p.opts}
        assert set(options.split()) <= have, name


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["compil"], "no command 'compil'. Did you mean 'compile'?"),
        (["xyzzy"], "no command 'xyzzy'. Commands: compile, run, inspect"),
        (
            ["run", "--promt", "x", "m.tw"],
            "No such option '--promt'. (Did you mean one of: '--prompt', '--prompt-cache'?)",
        ),
        (["run", "m.tw", "--top-p", "2"], "2.0 is not in the range 0<=x<=1"),
        (["run"], "Missing argument 'ARTIFACT'"),
        (["run", "m.tw", "--set", "tools"], "Invalid value for --set: expected NAME=VALUE, got 'tools'"),
        (["exec", __file__, "--input", "x"], "--input x: expected NAME=FILE.npy"),
        (["exec", __file__, "--set", "T=two"], "--set T=two: expected SYMBOL=N"),
    ],
)
def test_wrong_calls_exit_with_2(capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    code, _, err = here(capsys, *args)
    assert code == 2 and message in err.replace("\n", " ")


def test_an_error_is_one_block(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = here(capsys, "run", tmp_path / "no.tw", "--prompt", "x")
    where = tmp_path / "no.tw"
    help_line = "  help: pass the folder that `tilewright compile DIR -o model.tw` wrote"
    assert (code, out, err) == (1, "", f"error: does not exist\n  where: {where}\n{help_line}\n")
    code, _, err = call("--debug", "run", tmp_path / "no.tw", "--prompt", "x")
    assert code == 1 and "Traceback" in err and "ArtifactError" in err


def test_run_streams_text_and_reports_json(capsys: pytest.CaptureFixture[str], stub_path: Path) -> None:
    ids = list(b"Hello")
    for _ in range(5):
        ids.append(expected_next(ids))
    code, out, _ = here(capsys, "run", stub_path, "--prompt", "Hello", "-n", 5, "--raw", "--json")
    report = json.loads(out)
    assert (
        code == 0
        and report["ids"] == ids[5:]
        and report["finish"] == "length"
        and report["level"] == "baseline"
    )
    code, out, _ = here(capsys, "run", stub_path, "--prompt", "Hello", "-n", 5, "--raw")
    assert code == 0 and out == report["text"] + "\n"
    code, out, _ = here(capsys, "run", stub_path, "--prompt", "Hello", "-n", 5, "--json")
    assert json.loads(out)["prompt_ids"] == [256, *b"user: Hello", 257, 256]


def test_run_sets_variables_of_the_chat_template(
    capsys: pytest.CaptureFixture[str], stub_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "flag.json").write_text("false")
    for value in ("false", f"@{tmp_path / 'flag.json'}"):
        wanted = ("--prompt", "Hello", "-n", 1, "--json", "--set", f"add_generation_prompt={value}")
        code, out, _ = here(capsys, "run", stub_path, *wanted)
        assert code == 0 and json.loads(out)["prompt_ids"] == [256, *b"user: Hello", 257]
    code, _, err = here(capsys, "run", stub_path, "--prompt", "x", "--raw", "--set", "a=1")
    said = (
        "error: a: the prompt does not use a chat template\n  where: template\n  help: pass messages "
        "instead of text or ids\n"
    )
    assert (code, err) == (1, said)


def test_a_prompt_longer_than_the_context(capsys: pytest.CaptureFixture[str], stub_path: Path) -> None:
    code, _, err = here(capsys, "run", stub_path, "--prompt", "x" * 400, "--raw")
    assert code == 1
    assert (
        err == "error: the prompt has 400 tokens, the context holds 100\n  where: prompt\n"
        "  help: shorten the prompt to at most 99 tokens\n"
    )


def test_inspect_executes_nothing(capsys: pytest.CaptureFixture[str], stub_path: Path) -> None:
    code, out, _ = here(capsys, "inspect", stub_path, "--weights")
    assert code == 0
    for part in (
        "260 at 32.00 bits per weight",
        "step",
        "baseline",
        "any CPU",
        "append",
        "000_plan",
        "weights.bin",
        "table",
    ):
        assert part in out
    report = json.loads(here(capsys, "inspect", stub_path, "--json", "--verify")[1])
    assert report["bits_per_weight"] == 32 and report["verified"] and report["recipe"] == {"name": "stub"}
    assert set(report["parts"]) >= {"weights.bin", "lib", "src", "ir", "tokenizer.json"}
    assert report["notes"] == {}
    code = (
        f"from tilewright.cli.app import run; import sys; run(['inspect', {str(stub_path)!r}])\n"
        "assert 'tilewright.runtime.library' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_dump_of_an_artifact(capsys: pytest.CaptureFixture[str], stub_path: Path) -> None:
    assert here(capsys, "dump", stub_path, "--stage", "plan")[:2] == (0, print_ir(stub_program()))
    assert here(capsys, "dump", stub_path, "--list")[1].startswith("000_plan")
    assert "static const tw_call tw_calls_0[]" in here(capsys, "dump", stub_path, "--form", "source")[1]
    code, _, err = here(capsys, "dump", stub_path, "--stage", "fuse")
    assert code == 1 and err.startswith("error: no stage 'fuse'; the stages are 000_plan")


def test_stages_are_picked_by_name_number_and_form() -> None:
    kernel = "kernel @a(%x: f32[T]) {\n  grid t in T by 1\n}\n"
    texts = {
        "000_captured": "a",
        "001_fuse": "b",
        "002_lower": f"meta x = 1\n{kernel}\nplan @p() arena 0 {{\n  return\n}}\n",
    }
    forms = {"000_captured": "graph", "001_fuse": "graph", "002_lower": "plan"}
    stages = [Shown(n, forms[n], lambda t=t: t) for n, t in texts.items()]
    for wanted in ("fuse", "1", "001", "001_fuse"):
        assert pick(stages, wanted, None, None) == "b"
    assert pick(stages, None, None, "graph") == "b"
    assert pick(stages, None, None, "plan") == texts["002_lower"]
    assert pick(stages, None, None, "tile") == kernel
    with pytest.raises(RefusedError, match="no stage in form 'tile'; the stages are 001_fuse"):
        pick(stages[1:2], None, None, "tile")


def test_eval_and_its_json(capsys: pytest.CaptureFixture[str], stub_path: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("some words to read " * 20)
    code, out, err = here(capsys, "eval", stub_path, "--text", text, "--window", 64, "--windows", 3, "--json")
    report = json.loads(out)
    assert (
        code == 0
        and report["windows"] == 3
        and report["tokens"] == 3 * 63
        and report["perplexity"] > 1
        and report["kl"] is None
    )
    code, _, err = here(capsys, "eval", stub_path, "--text", text, "--window", 512)
    assert code == 1 and "a window of 512 tokens, the context holds 100" in err


def test_bench_reports_what_the_manual_lists(
    capsys: pytest.CaptureFixture[str], stub_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = here(
        capsys, "bench", stub_path, "--prefill", 32, "--decode", 4, "--batch", 2, "--threads", 1, "--json"
    )
    report = json.loads(out)
    keys = {
        "prefill_tok_s",
        "decode_tok_s",
        "prefill_peak_share",
        "decode_bandwidth_share",
        "limits",
        "peak_rss_mb",
        "load_s",
    }
    assert code == 0 and keys <= set(report) and set(report["machine"]) == {"others", "stolen", "busy"}
    assert set(report["limits"]) == {"dram_gb_s", "f32_gflop_s", "bf16_gflop_s", "int8_gop_s"}
    monkeypatch.setattr(LoadWatch, "load", lambda watch: Load(2, 0.97, 0.0))
    _, out, _ = here(capsys, "bench", stub_path, "--prefill", 32, "--decode", 4)
    assert (
        "machine  other processes keep 1.0 of 2 processors busy: the figures are lower than on an idle "
        "machine"
    ) in out
    code, _, err = here(capsys, "bench", stub_path, "--prefill", 99)
    assert code == 1 and "the workload needs 163 positions, the context holds 100" in err


def test_plugins_run_once_and_their_errors_are_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("import builtins\nbuiltins.plugin_runs = getattr(builtins, 'plugin_runs', 0) + 1\n")
    bad.write_text("raise KeyError('broken')\n")
    load_plugin(good)
    load_plugin(good)
    import builtins

    assert builtins.plugin_runs == 1  # type: ignore[attr-defined]
    code, _, err = here(capsys, "opt", good, "--plugin", bad)
    assert code == 2 and "KeyError: 'broken'" in err


def test_a_closed_pipe_is_quiet(stub_path: Path) -> None:
    command = (
        f"{sys.executable} -c 'from tilewright.cli.app import main; main()' inspect {stub_path} | head -1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("made by") and done.stderr == ""


@pytest.mark.parametrize(
    ("n", "text"), [(5, "5 B"), (1500, "1.5 kB"), (2_500_000, "2.5 MB"), (3e12, "3.00 TB")]
)
def test_sizes_as_people_read_them(n: float, text: str) -> None:
    assert human_bytes(n) == text


def test_ctrl_c_prints_what_there_is(stub_path: Path) -> None:
    """The signal comes while tokens are made: the text so far stays, and the exit is clean."""
    code = (
        "import os, signal, tilewright.runtime.generate as g\nreal, n = g.choose, [0]\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in background shells
        "def choose(*a):\n    n[0] += 1\n    if n[0] == 4: os.kill(os.getpid(), signal.SIGINT)\n    return "
        "real(*a)\n"
        "g.choose = choose\nfrom tilewright.cli.app import main\n"
        f"main(['run', {str(stub_path)!r}, '--prompt', 'Hello', '--raw', '-n', '50', '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["finish"] == "stopped" and len(report["ids"]) == 3


def test_compile_looks_at_its_output_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = here(capsys, "compile", tmp_path / "no-model", "-o", tmp_path)
    assert code == 1 and err.startswith(
        "error: exists and is not an artifact, so it is not replaced\n  where: "
    )
    assert (tmp_path / "notes.txt").read_text() == "mine"
