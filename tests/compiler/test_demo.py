"""The demo's checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tilewright.ir.weights.safetensors import SafeTensors

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "models" / "small-llama"


def test_the_checkpoint_is_whole() -> None:
    """Both files hold what the index says, every tensor in bf16."""
    index = json.loads((MODEL / "model.safetensors.index.json").read_text())
    files = {name: SafeTensors(MODEL / name) for name in set(index["weight_map"].values())}
    kinds = {files[file].raw(key)[1] for key, file in index["weight_map"].items()}
    assert len(files) == 2 and kinds == {"bf16"}
    assert (
        sum(files[f].raw(k)[0].nbytes for k, f in index["weight_map"].items())
        == index["metadata"]["total_size"]
    )
