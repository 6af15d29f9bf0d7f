"""Calibration: weights solved on samples, a run that goes on after a kill, and messages about bad files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tilewright as tw
from tests.compiler.families import eager_logits, write_model
from tilewright.backends.packing import weight_bytes
from tilewright.calibration.calibrate import BLOCK, Gathered, solver_of
from tilewright.cli.app import run
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Stored, Weight, walk_expr
from tilewright.ir.solver import Statistics
from tilewright.ir.text.plan_parser import parse_ir
from tilewright.ir.weights.sources import WeightStore, stored_values
from tilewright.passes.base import parse_pipeline
from tilewright.passes.driver import run_passes
from tilewright.passes.solvers.gptq import Gptq, objective

GPTQ = "gptq(int4(group=32))"
IDS = np.random.default_rng(0).integers(3, 96, 700)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama with a tokenizer of one token per byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("llama")
    write_model(folder, "llama")
    vocab = {c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())[:96])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=next(iter(vocab))))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def plain(directory: Path) -> tw.Compiled:
    """The same model with its weights as they are."""
    return tw.compile(directory, recipe="f32")


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.npy"
    np.save(path, IDS)
    return path


def solved(directory: Path, source: object, **more: object) -> tw.Compiled:
    given: dict[str, object] = {"samples": 6, "sample_tokens": 64, **more}
    return tw.compile(directory, weights=GPTQ, calibrate=source, **given)  # type: ignore[arg-type]


def contractions(c: tw.Compiled) -> list[Weight]:
    return [w for w in c.program.weights if solver_of(w) is not None]


# ------------------------------------------------------------------ what is solved
def test_every_linear_is_solved_and_its_objective_is_not_above_nearest(directory: Path, ids: Path) -> None:
    seen: dict[str, NDArray[np.float32]] = {}
    whole = Gptq.solve

    def watched(self: Gptq, w: NDArray[np.float32], statistics: object, encoding: object) -> object:
        seen[w.tobytes().hex()[:64]] = statistics.h  # type: ignore[attr-defined]
        return whole(self, w, statistics, encoding)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gptq, "solve", watched)
        done = solved(directory, ids)
    found = contractions(done)
    assert len(found) == len(seen) == 2 * 4 + 1
    e = parse_encoding("int4(group=32)")
    for weight in found:
        w = np.asarray(done.store.load(weight), np.float32)
        h = seen[w.tobytes().hex()[:64]]
        ours, nearest = (
            objective(w - x, h) for x in (stored_values(done.store, weight), e.decode(e.encode(w)))
        )
        assert (ours <= nearest * (1 + 1e-6)).all() and ours.sum() < 0.9 * nearest.sum()


def test_the_text_the_ids_and_an_iterable_give_the_same(directory: Path, ids: Path, tmp_path: Path) -> None:
    text = tmp_path / "some.txt"
    table = {
        n: c for c, n in json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"].items()
    }
    text.write_text("".join(table[n] for n in IDS), "utf-8")
    runs = [solved(directory, source) for source in (ids, text, [IDS[:400], IDS[400:]])]
    for w in contractions(runs[0]):
        first, *others = (stored_values(r.store, w) for r in runs)
        assert all((first == o).all() for o in others)


@pytest.mark.parametrize(
    "solver",
    [
        "awq(gptq(int4(group=32)))",
        pytest.param("awq(int4(group=32))", marks=pytest.mark.slow),
        pytest.param("smoothquant(int8(channel))", marks=pytest.mark.slow),
    ],
)
def test_rescaled_channels_end_to_end(
    solver: str, directory: Path, plain: tw.Compiled, ids: Path, tmp_path: Path
) -> None:
    """The artifact computes what the rescaled weights say, near the original; a second run takes the same
    factors."""
    given = {
        "calibrate": ids,
        "samples": 6,
        "sample_tokens": 64,
        "work": tmp_path / "work",
        "activations": "f32",
    }
    first, second = (tw.compile(directory, weights=solver, **given) for _ in range(2))  # type: ignore[arg-type]
    assert first.record.stage("calibrate").text == second.record.stage("calibrate").text
    original = {w.name: w for w in plain.program.weights}
    moved = 0
    for w in first.program.weights:
        x, y = (stored_values(c.store, w) for c in (first, second))
        assert (x == y).all()
        moved += w.name in original and not np.array_equal(
            np.asarray(first.store.load(original[w.name])), first.store.load(w)
        )
    assert moved >= 9
    prompt = IDS[:40]
    want, got = eager_logits(directory, prompt[None])[0], np.asarray(first(prompt), np.float32)
    assert np.corrcoef(want.reshape(-1), got.reshape(-1))[0, 1] > 0.8


def test_every_stage_reenters_with_its_weights(directory: Path, ids: Path, tmp_path: Path) -> None:
    """The text of any stage from *calibrate* on, the model's folder and the work folder are all it takes to
    make the same program with the same stored weights."""
    solver = "awq(gptq(int4(group=32)))"
    given = {"calibrate": ids, "samples": 6, "sample_tokens": 64, "work": tmp_path / "work"}
    whole = tw.compile(directory, weights=solver, activations="int8(token)", **given)  # type: ignore[arg-type]
    names = [s.name for s in whole.stages]
    assert names[:7] == [
        "captured", "canonicalize", "recognise", "canonicalize", "merge-linears", "encode-weights",
        "calibrate",
    ]  # fmt: skip
    passes = parse_pipeline(whole.recipe.pipeline("decoder", lowering=True))
    for n in range(6, len(names)):
        ir = parse_ir(whole.stages[n].text)
        assert not isinstance(ir, tuple)
        again = run_passes(ir, passes[n:]).program
        assert again.weights == whole.program.weights
        fresh = WeightStore(directory, solved=whole.store.solved)
        for w in again.weights if n in (6, len(names) - 1) else ():
            assert b"".join(weight_bytes(fresh, w)) == b"".join(weight_bytes(whole.store, w)), w.name
    files = {e.file for w in whole.program.weights for e in walk_expr(w.source) if isinstance(e, Stored)}
    assert any(f.startswith("solved:segment") for f in files) and "memory" not in files


def test_passes_that_do_not_calibrate_refuse_samples(directory: Path, ids: Path) -> None:
    passes = f'canonicalize, recognise, canonicalize, merge-linears, encode-weights{{weights="{GPTQ}"}}, fuse'
    with pytest.raises(RefusedError, match="the passes do not calibrate, so the samples would not be used"):
        solved(directory, ids, passes=passes)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_every_expert_is_solved_on_its_own_tokens(family: str, ids: Path, tmp_path: Path) -> None:
    """Experts see different tokens; no objective is above round-to-nearest, and the mean is well below."""
    write_model(tmp_path / family, family)
    found: dict[bytes, Statistics] = {}
    whole = Gptq.solve

    def watched(self: Gptq, w: NDArray[np.float32], statistics: Statistics, encoding: object) -> object:
        found[w.tobytes()] = replace(statistics, h=statistics.h.copy())
        return whole(self, w, statistics, encoding)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gptq, "solve", watched)
        done = tw.compile(tmp_path / family, weights=GPTQ, calibrate=ids, samples=6, sample_tokens=64)
    experts = [w for w in contractions(done) if len(w.type.shape) == 3]
    assert len(experts) == 4
    e, gains, counts = parse_encoding("int4(group=32)"), [], []
    for weight in experts:
        values = np.asarray(done.store.load(weight), np.float32)
        for w, ours in zip(values, stored_values(done.store, weight), strict=True):
            seen = found[w.tobytes()]
            errors = [objective(w - x, seen.h) for x in (ours, e.decode(e.encode(w)))]
            assert (errors[0] <= errors[1] * (1 + 1e-5) + 1e-12).all()
            counts.append(seen.tokens)
            gains += [errors[0].sum() / errors[1].sum()] if seen.tokens else []
    assert sum(counts) == 4 * 2 * 6 * 64 and len(set(counts)) > 3, (
        "every token goes to two experts, not to the same ones"
    )
    assert np.mean(gains) < 0.9
    prompt = IDS[:40]
    want, got = eager_logits(tmp_path / family, prompt[None])[0], np.asarray(done(prompt), np.float32)
    assert np.corrcoef(want.reshape(-1), got.reshape(-1))[0, 1] > 0.8


def test_any_module_is_calibrated_on_its_inputs() -> None:
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 32))
    x = torch.randn(40, 64)
    c = tw.compile(net, example_inputs=(x,), weights="gptq(int4(group=16))", calibrate=[x.numpy()])
    assert len(contractions(c)) == 2 and np.isfinite(np.asarray(c(x))).all()


def test_sums_of_products_are_whole() -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, BLOCK + 40)).astype(np.float32)
    gathered = Gathered.empty(BLOCK + 40)
    for part in x:
        gathered.add(part)
    rows = x.reshape(15, -1)
    np.testing.assert_allclose(gathered.statistics().h, 2 / 15 * rows.T @ rows, atol=1e-5)


# ------------------------------------------------------------------ going on after a kill
def counted(into: list[str]) -> Callable[..., object]:
    whole = Gptq.solve

    def solve(self: Gptq, *args: object) -> object:
        into.append("solved")
        return whole(self, *args)  # type: ignore[arg-type]

    return solve


def test_a_run_that_stopped_goes_on(
    directory: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Gptq, "solve", counted(calls))

    def dies(what: str, done: int, total: int) -> None:
        if what.startswith("solving") and len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solved(directory, ids, work=tmp_path / "work", progress=dies)
    assert len(calls) == 5
    resumed = solved(directory, ids, work=tmp_path / "work")
    assert len(calls) == 9
    fresh = solved(directory, ids)
    for w in contractions(fresh):
        assert (stored_values(fresh.store, w) == stored_values(resumed.store, w)).all()


def test_other_samples_or_solvers_start_anew(
    directory: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Gptq, "solve", counted(calls))
    for more in ({}, {}, {"samples": 5}):
        solved(directory, ids, work=tmp_path / "work", **more)
    assert len(calls) == 18


def test_progress_is_told(directory: Path, ids: Path) -> None:
    told: list[tuple[str, int, int]] = []
    solved(directory, ids, progress=lambda *step: told.append(step))
    at = [(done, total) for what, done, total in told if what.startswith(("calibrating", "solving"))]
    assert len({total for _, total in at}) == 1 and at == sorted(at) and at[-1][0] <= at[-1][1]


# ------------------------------------------------------------------ messages about bad input
def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert run([str(a) for a in args]) != 0
    return capsys.readouterr().err


def test_messages(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, short, odd = tmp_path / "empty.txt", tmp_path / "short.txt", tmp_path / "odd.npy"
    empty.write_text("\n")
    short.write_text("abc")
    np.save(odd, np.zeros(1000, np.float32))
    base = ("compile", directory, "-o", tmp_path / "m.tw", "--weights", GPTQ, "--sample-tokens", 64)
    said = refused(capsys, *base)
    assert (
        "the solver of @" in said
        and "needs samples" in said
        and "help: pass a text: --calibrate FILE" in said
    )
    said = refused(capsys, *base, "--calibrate", empty)
    assert "the file contains no text: found 0 tokens" in said and f"where: {empty}" in said
    said = refused(capsys, *base, "--calibrate", short)
    assert (
        "found 3 tokens, expected at least 64" in said
        and "help: pass a longer text, or use samples of at most 3 tokens" in said
    )
    assert "expected token ids, got float32" in refused(capsys, *base, "--calibrate", odd)
    assert "there is no such file" in refused(capsys, *base, "--calibrate", tmp_path / "none.txt")
    said = refused(capsys, *base, "--max-ram", "lots")
    assert "'lots' is not a size; write 2GB or 1500MB" in said


def test_memory_bound_names_what_fits(directory: Path, ids: Path) -> None:
    with pytest.raises(RefusedError, match=r"--max-ram: refused: needs about .* GB, allowed are 0.00 GB"):
        solved(directory, ids, max_ram=100_000)


def test_values_that_are_no_numbers_are_named(tmp_path: Path, ids: Path) -> None:
    from safetensors.numpy import load_file, save_file

    write_model(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    held = {k: np.array(v) for k, v in load_file(file).items()}
    held["model.layers.1.mlp.down_proj.weight"][3, 4] = np.nan
    save_file(held, file, {"format": "pt"})
    with pytest.raises(
        RefusedError, match=r"weight @.*layers.1.mlp.down_proj.weight: refused: contains 1 NaN and 0 infinite"
    ):
        solved(tmp_path, ids)


def test_ids_beyond_the_vocabulary_are_refused(directory: Path) -> None:
    with pytest.raises(RefusedError, match="holds id 96, the model's largest id is 95"):
        solved(directory, [np.full(640, 96)])


# ------------------------------------------------------------------ the trained model
@pytest.mark.slow
def test_a_killed_compile_goes_on(tiny_llama: Path, repo: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from tilewright.cli.app import main; main()",
        "compile",
        tiny_llama,
        "-o",
        tmp_path / "m.tw",
    ]
    command += [
        "--weights",
        "gptq(int4(group=64))",
        "--activations",
        "int8(token)",
        "--calibrate",
        repo / "docs" / "ir.md",
    ]
    command = [
        str(a)
        for a in (*command, "--samples", 8, "--sample-tokens", 256, "--work", tmp_path / "work", "--json")
    ]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    work, deadline = tmp_path / "work", time.monotonic() + 300
    while len(list(work.glob("*/*.safetensors"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = {p: p.stat().st_mtime_ns for p in work.glob("*/*.safetensors")}
    assert len(kept) >= 5 and not (tmp_path / "m.tw").exists()
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert report["bits_per_weight"] < 5
    assert all(p.stat().st_mtime_ns == at for p, at in kept.items())
    plain = tw.compile(tiny_llama, weights="int4(group=64)").program.weights
    assert len(list(work.glob("*/*.safetensors"))) == sum("int4" in str(w.type.encoding) for w in plain)


def test_samples_that_nothing_would_read_are_refused(tiny_llama: Path) -> None:
    with pytest.raises(RefusedError) as caught:
        tw.compile(tiny_llama, recipe="w4a8", calibrate="missing.txt")
    assert str(caught.value) == (
        "recipe w4a8: refused: no weight has a solver that needs samples, so they would not be used\n"
        "  help: omit `calibrate`, or use a solver that needs samples: gptq(int4(group=128)), "
        "awq(int4(group=32)), …"
    )
