"""An artifact holds the notes of its compile and the solver of each weight, and nothing that varies."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.passes.models import Llama, llama
from tilewright.artifact.contents import Contents
from tilewright.artifact.stages import notes_by_stage, notes_of
from tilewright.artifact.writer import write_artifact
from tilewright.backends.packing import weight_bytes
from tilewright.backends.storage import PlacedWeight
from tilewright.cli.inspect import Inspected, report
from tilewright.ir.graph.core import Stored
from tilewright.ir.graph.random_values import RandomWeights
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.driver import run_passes
from tilewright.passes.record import Record
from tilewright.recipe import Recipe
from tilewright.runtime.artifact import read_artifact
from tilewright.runtime.errors import ArtifactError

RECIPE = Recipe(
    weights="hqq(int4(group=32))", activations="f32", rules=(("*.down_proj.weight", "int8(channel)"),)
)


def compiled(folder: Path, name: str) -> tuple[Record, Path]:
    """The record of a compile, and its artifact, without libraries."""
    module = llama(Llama(hidden=64, inner=96, vocab=64, layers=1))
    drawn = RandomWeights(0).learn(module)
    arrays = {w.source.key: np.asarray(drawn(w)) for w in module.weights if isinstance(w.source, Stored)}
    save_file(arrays, folder / "model.safetensors")
    record = run_passes(module, RECIPE.pipeline("decoder", lowering=True))
    weights, store = {w.name: w for w in record.program.weights}, WeightStore(folder)

    def stream(place: PlacedWeight) -> Iterable[memoryview]:
        return weight_bytes(store, weights[place.name])

    write_artifact(folder / name, Contents(record, ()), stream)
    return record, folder / name


def test_notes_read_back_by_stage(tmp_path: Path) -> None:
    record, path = compiled(tmp_path, "a.tw")
    found = notes_of(read_artifact(path))
    assert {stage.partition("_")[2] for stage in found} >= {"canonicalize", "merge-linears", "fuse"}
    known = notes_by_stage(record)
    assert list(found) == list(known)
    for stage, notes in known.items():
        assert [str(n) for n in found[stage]] == [str(n) for n in notes]


def test_two_compiles_write_the_same_bytes(tmp_path: Path) -> None:
    (_, a), (_, b) = compiled(tmp_path, "a.tw"), compiled(tmp_path, "b.tw")
    names = sorted(str(p.relative_to(a)) for p in a.rglob("*") if p.is_file())
    assert "notes.json" in names
    assert filecmp.cmpfiles(a, b, names, shallow=False)[0] == names


def test_inspect_names_encoding_and_solver_of_each_weight(tmp_path: Path) -> None:
    artifact = read_artifact(compiled(tmp_path, "a.tw")[1])
    page = report(Inspected(artifact.manifest, notes_of(artifact), str), True)
    assert "f32[64, 96] as rtn(int8(channel)), " in page
    assert "f32[64, 64] as hqq(int4(group=32)), " in page
    assert "f32[64] as f32, 256 B" in page
    assert "merge-linears  [2 applied, 0 declined]" in page


def test_damaged_notes_are_named(tmp_path: Path) -> None:
    artifact = read_artifact(compiled(tmp_path, "a.tw")[1])
    where = artifact.path / "notes.json"
    where.write_text(json.dumps({"002_recognise": [{"pass": "recognise", "rewrite": "x", "applied": 1}]}))
    with pytest.raises(ArtifactError) as e:
        notes_of(artifact)
    assert str(e.value) == (
        f"{where}.002_recognise[0]: applied: expected true or false, got 1\n"
        "  help: the artifact is damaged or was edited; compile the model again"
    )
