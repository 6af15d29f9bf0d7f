"""The context limit: what was requested and what the model has tables for, exact to the token everywhere."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.compiler import families
from tilewright.capture import capture_directory
from tilewright.cli.app import run
from tilewright.ir.errors import RefusedError
from tilewright.runtime.errors import SessionError
from tilewright.runtime.model import Model

#: requested, and 100 learned positions: neither is a whole slice of the cache
ASKED, LEARNED = 40, 100


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("context")


@pytest.fixture(scope="module")
def asked(home: Path) -> Path:
    tw.compile(families.write_model(home / "llama", "llama"), recipe="f32", context=ASKED).save(
        home / "llama.tw"
    )
    return home / "llama.tw"


def with_positions(directory: Path, name: str, count: int) -> Path:
    """A family's model with tables of so many positions."""
    kind, fields = families.FAMILIES[name]
    key = next(k for k in ("n_positions", "max_seq_len", "max_position_embeddings") if k in fields)
    small = {"n_embd": 24, "n_head": 3} if name == "gpt2" else {}  # kernels of a third of the text
    families.make_model(kind, {**fields, **small, key: count}).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def learned(home: Path) -> tuple[Model, Path]:
    directory = with_positions(home / "gpt2", "gpt2", LEARNED)
    tw.compile(directory, recipe="f32").save(home / "gpt2.tw")
    return tw.load(home / "gpt2.tw", threads=1), directory


# ------------------------------------------------------------------ what was requested
def test_a_session_holds_what_was_asked_for(asked: Path) -> None:
    model = tw.load(asked, threads=1)
    assert model.library.context == model.manifest.limits["context"] == ASKED
    with model.session(1) as s:
        seq = s.add()
        s.step([(seq, [5] * ASKED, "none")])
        with pytest.raises(SessionError) as e:
            s.step([(seq, [5], "last")])
    assert str(e.value) == (
        "step, item 0: 41 tokens do not fit into a context of 40\n"
        "  help: shorten the prompt, or compile with a longer --context if the model has one"
    )
    with pytest.raises(SessionError, match="41 tokens do not fit into a context of 40"):
        model([5] * (ASKED + 1))


def test_generation_ends_there(asked: Path) -> None:
    got = tw.load(asked, threads=1).generate([5] * 30, max_new_tokens=50)
    assert got.finish == "context" and len(got.ids) == 11  # ten of them were read again, the last one not
    with pytest.raises(SessionError, match="the prompt has 40 tokens, the context holds 40"):
        tw.load(asked).generate([5] * ASKED)


def test_eval_and_bench(asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("a " * 100)
    assert run(["eval", str(asked), "--text", str(tmp_path / "text"), "--window", "41"]) == 1
    assert "a window of 41 tokens, the context holds 40" in capsys.readouterr().err
    assert run(["bench", str(asked), "--prefill", "30", "--decode", "11"]) == 1
    assert "the workload needs 41 positions, the context holds 40" in capsys.readouterr().err


def test_from_c(asked: Path, repo: Path, tmp_path: Path) -> None:
    embed = tmp_path / "embed"
    source, headers = repo / "examples/embed/main.c", repo / "runtime/native"
    subprocess.run(
        ["cc", "-O1", f"-I{headers}", "-o", embed, source, "-ldl"], check=True, capture_output=True
    )
    done = subprocess.run([embed, asked, "60", "5"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "tw_step: pos[0] is 40, expected 0 to 39\n"
    done = subprocess.run([embed, asked, "40", "5"], capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.split()) == ASKED


def test_the_command_line_asks_for_one(home: Path, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.tw"
    assert run(["compile", str(home / "llama"), "-o", str(out), "--recipe", "f32", "--context", "40"]) == 0
    assert tw.load(out).library.context == ASKED


def test_no_context_of_nothing(home: Path, asked: Path) -> None:
    for context in (0, -5):
        with pytest.raises(RefusedError, match=f"context: expected an integer of at least 1, got {context}"):
            tw.compile(home / "llama", context=context)
    with pytest.raises(RefusedError, match="field context must be at least 1"):
        tw.compile(home / "llama", recipe={"context": -5})


def test_a_plain_module_has_none() -> None:
    import torch

    with pytest.raises(RefusedError, match="a context of 40 positions for a module without sequences"):
        tw.compile(torch.nn.Linear(4, 4), example_inputs=(torch.zeros(2, 4),), context=ASKED)


# ------------------------------------------------------------------ what the model has
def test_learned_positions_end_where_the_table_ends(learned: tuple[Model, Path]) -> None:
    model, directory = learned
    assert model.library.context == LEARNED
    ids = families.prompt(96, 1, LEARNED)
    assert families.distance(np.asarray(model(ids[0])), families.eager_logits(directory, ids)[0]) <= 1e-4
    with pytest.raises(SessionError, match="101 tokens do not fit into a context of 100"):
        model([5] * (LEARNED + 1))


def test_no_context_beyond_the_table(learned: tuple[Model, Path]) -> None:
    with pytest.raises(RefusedError) as e:
        tw.compile(learned[1], recipe="f32", context=120)
    where, _, rest = str(e.value).partition(": ")
    assert where.startswith("modeling_gpt2.py:")
    assert (
        rest == "refused: a context of 120 positions, the model has a table of 100\n  help: use at most 100"
    )


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("gpt2", 100),
        ("opt", 100),
        ("gptj", 100),
        ("mpt", 100),
        ("llama", None),
        ("bloom", None),
        ("falcon", None),
    ],
)
def test_tables_are_found(home: Path, name: str, positions: int | None) -> None:
    """Learned with and without an offset, sines, and ALiBi cut from a table; rotary and computed ALiBi have
    none."""
    directory = home / f"{name}-100"
    if positions:
        with_positions(directory, name, positions)
    else:
        families.write_model(directory, name)
    meta = dict(capture_directory(directory).meta)
    assert meta.get("positions") == positions
    assert positions is None or meta["context"] == positions
