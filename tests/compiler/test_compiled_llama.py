"""A hand-written llama from graph to artifact: kernels under sessions, forks, rebuilds and the C example."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.passes.models import Llama, llama
from tilewright.artifact.contents import Contents
from tilewright.artifact.writer import write_artifact
from tilewright.backends.cpp.levels import resolve_levels
from tilewright.backends.cpp.libraries import build_levels
from tilewright.backends.packing import weight_bytes
from tilewright.backends.storage import PlacedWeight
from tilewright.cli.app import run
from tilewright.ir.graph.core import Module, Stored
from tilewright.ir.graph.random_values import RandomWeights
from tilewright.ir.interp.graph import Interpreter
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.driver import run_passes
from tilewright.recipe import Recipe, resolve_recipe
from tilewright.runtime.errors import ArtifactError
from tilewright.runtime.model import Model, load

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags

SHAPE = Llama(hidden=64, inner=96, vocab=64)
IDS = np.random.default_rng(0).integers(0, 64, 40)


def checkpoint(folder: Path, module: Module) -> WeightStore:
    """Random weights as a checkpoint directory."""
    drawn = RandomWeights(0).learn(module)
    stored = {w.source.key: np.asarray(drawn(w)) for w in module.weights if isinstance(w.source, Stored)}
    save_file(stored, folder / "model.safetensors")
    return WeightStore(folder)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_artifact(SHAPE, resolve_recipe("f32"), tmp_path_factory.mktemp("llama"))


def llama_artifact(shape: Llama, recipe: Recipe, folder: Path) -> Path:
    """A hand-written llama with random weights, compiled into `folder`."""
    module = llama(shape)
    record = run_passes(module, recipe.pipeline("decoder", lowering=True))
    program = record.program
    weights = {w.name: w for w in program.weights}
    store = checkpoint(folder, module)

    def stream(place: PlacedWeight) -> Iterable[memoryview]:
        return weight_bytes(store, weights[place.name])

    out = folder / "l.tw"
    levels = build_levels(program, resolve_levels("native"))
    write_artifact(out, Contents(record, levels, recipe.stated()), stream)
    return out


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return load(path, threads=2)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    module = llama(SHAPE)
    inputs = {"ids": IDS[None, :32].astype(np.int32), "pos": np.arange(32, dtype=np.int32)[None]}
    out: np.ndarray = Interpreter(module, RandomWeights(0).learn(module)).run("forward", inputs)["logits"][0]
    return out


def test_the_logits_are_those_of_the_captured_graph(model: Model, expected: np.ndarray) -> None:
    got = np.asarray(model(IDS[:32]))
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("cuts", [[1] * 40, [7, 1, 13, 19], [39, 1]], ids=str)
def test_any_cut_at_any_thread_count_gives_the_same_bits(model: Model, cuts: list[int], threads: int) -> None:
    want, at, got = model(IDS), 0, []
    with model.session(threads=threads) as s:
        seq = s.add()
        for n in cuts:
            got += s.step([(seq, IDS[at : at + n], "all")])
            at += n
    assert np.array_equal(np.concatenate([g for g in got if g is not None]), want)


def test_a_mixed_batch_gives_the_same_bits(model: Model) -> None:
    alone = [np.asarray(model(IDS[:n])) for n in (40, 11, 23)]
    with model.session(max_sequences=4) as s:
        a, b, c = s.add(), s.add(), s.add()
        s.step([(a, IDS[:39], None), (c, IDS[:5], None)])
        got = s.step([(c, IDS[5:23], "last"), (a, IDS[39:40], "last"), (b, IDS[:11], "all")])
        assert got[0] is not None and np.array_equal(got[0][0], alone[2][-1])
        assert got[1] is not None and np.array_equal(got[1][0], alone[0][-1])
        assert np.array_equal(got[2], alone[1])
        d = s.fork(b)
        twins = s.step([(b, IDS[11:14], "all"), (d, IDS[11:14], "all")])
        assert np.array_equal(twins[0], twins[1]) and np.array_equal(
            twins[0], np.asarray(model(IDS[:14]))[11:]
        )


def test_no_rows_wanted_is_no_work_for_the_head(model: Model) -> None:
    with model.session() as s:
        a = s.add()
        assert s.step([(a, IDS[:3], None)]) == [None]
        [got] = s.step([(a, IDS[3:4], "last")])
    assert np.array_equal(got, np.asarray(model(IDS[:4]))[-1:])


def test_rebuilt_from_its_ir_it_computes_the_same(model: Model, path: Path) -> None:
    assert np.array_equal(load(path, rebuild=True)(IDS), model(IDS))


def test_ir_that_was_changed_is_not_rebuilt(path: Path, tmp_path: Path) -> None:
    import hashlib
    import shutil

    from tilewright.ir.errors import RefusedError
    from tilewright.runtime.manifest import seal

    folder = Path(shutil.copytree(path, tmp_path / "l.tw"))
    manifest = json.loads((folder / "manifest.json").read_text())
    name = f"ir/{manifest['stages'][-1]['name']}.ir"
    text = (folder / name).read_text().replace("arena ", "arena 1", 1)
    (folder / name).write_text(text)
    with pytest.raises(ArtifactError, match="expected"):
        load(folder, rebuild=True)
    manifest["files"][name] = {
        "bytes": len(text.encode()),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    manifest["seal"] = seal(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RefusedError, match="its IR does not match the layout of its weights"):
        load(folder, rebuild=True)


def test_the_c_program_prints_the_same_ids(model: Model, path: Path, repo: Path, tmp_path: Path) -> None:
    program = tmp_path / "embed"
    native = repo / "runtime" / "native"
    subprocess.run(["cc", f"-I{native}", repo / "examples/embed/main.c", "-o", program, "-ldl"], check=True)
    done = subprocess.run(
        [program, path, "8", *map(str, IDS[:6])], capture_output=True, text=True, check=True
    )
    got = model.generate(IDS[:6].tolist(), max_new_tokens=8)
    assert done.stdout.split() == [str(i) for i in got.ids]  # type: ignore[union-attr]


def test_dump_shows_every_stage(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dump", str(path), "--list"]) == 0
    names = capsys.readouterr().out
    assert "fuse  (graph)" in names and "lower  (plan)" in names
    assert run(["dump", str(path), "--after", "fuse"]) == 0
    assert "attend_cache" in capsys.readouterr().out
    assert run(["dump", str(path), "--form", "plan"]) == 0
    assert "plan @step(" in capsys.readouterr().out
    assert run(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["symbols"]["T"][0] == 1
