"""Captured models of every supported family equal eager float32, and a missing attribute is detected."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compiler import families
from tilewright.capture import capture_directory, huggingface
from tilewright.ir.graph.core import Module
from tilewright.ir.graph.verify import verify_module
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.driver import run_passes

#: largest difference allowed, as a share of the logit range
TOLERANCE = 1e-4
#: one of each way to embed positions, to mask, to normalise, to choose experts
QUICK = (
    "llama", "gemma3_text", "gpt2", "bloom", "gpt_oss", "mixtral",
)  # fmt: skip
PLAIN = {"bloom", "mpt", "diffllama", "xglm", "gpt_neo"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def captured(home: Path, name: str) -> tuple[Module, Path]:
    directory = families.write_model(home / name, name)
    return capture_directory(directory), directory


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in families.FAMILIES]
)
def test_family_equals_eager(home: Path, name: str) -> None:
    module, directory = captured(home, name)
    verify_module(module)
    meta = dict(module.meta)
    assert meta["attention"] == ("plain" if name in PLAIN else "attend")
    attends = [op for op in module.graph("forward").ops if op.name == "attend"]
    assert len(attends) == (0 if name in PLAIN else meta["layers"])
    assert all(op.attr("causal") for op in attends)
    assert all(op.loc is not None for op in module.graph("forward").ops)
    store = WeightStore(directory)
    ids = families.prompt(96)
    logits = families.graph_logits(module, store, ids)
    assert families.distance(logits, families.eager_logits(directory, ids)) <= TOLERANCE
    for what in ("window", "softcap", "causal", "scale", "sinks", "positions"):
        broken = families.without(module, what)
        if broken is not None and broken is not module:
            moved = families.distance(families.graph_logits(broken, store, ids), logits)
            assert moved >= 100 * TOLERANCE, f"leaving out {what} moves the logits by {moved:.1e} only"
    norms = 0
    for what, other in families.eager_without_norms(directory, ids):
        moved, norms = families.distance(other, logits), norms + 1
        assert not moved < 100 * TOLERANCE, f"leaving out {what} moves the logits by {moved:.1e} only"
    assert norms >= 2


def test_one_key_head_by_the_arithmetic_of_the_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Falcon without its attention as an op: a product repeats the only key head, and attention is found."""
    monkeypatch.setattr(huggingface, "export_model", lambda c: huggingface._export(c, "eager", "plain"))
    directory = families.write_model(home / "plain falcon", "falcon")
    module = huggingface.capture_directory(directory)
    assert dict(module.meta)["attention"] == "plain"
    found = run_passes(module, "canonicalize, recognise, canonicalize").module
    heads = [
        (op.attr("heads"), op.attr("kv_heads")) for op in found.graph("forward").ops if op.name == "attend"
    ]
    assert len(heads) == dict(module.meta)["layers"] and all(kv == 1 < q for q, kv in heads)
    ids = families.prompt(96)
    logits = families.graph_logits(found, WeightStore(directory), ids)
    assert families.distance(logits, families.eager_logits(directory, ids)) <= TOLERANCE
