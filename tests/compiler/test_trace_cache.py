"""Cached traces equal fresh ones; they are recomputed when an input changed, and repaired when damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tilewright.backends.cache import code_digest
from tilewright.backends.cpp.isa import TARGETS
from tilewright.backends.cpp.libraries import rendered
from tilewright.backends.cpp.render import render_kernel
from tilewright.capture import capture_directory, huggingface
from tilewright.capture import trace_cache as kept
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.graph.core import Module
from tilewright.ir.numbers import largest
from tilewright.ir.text.tile_parser import parse_kernel
from tilewright.runtime.manifest import WEIGHTS

KERNEL = """
kernel @decode(%w: f32[48, 64] as int4(group=32), %y: f32[48, 64]) {
  grid j in 48 by 16
  store %y[j:16, 0:64], load %w[j:16, 0:64]
  schedule * { threads j }
}"""


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def entries(cache: Path, kind: str) -> list[Path]:
    return sorted(p for p in (cache / kind).glob("*") if p.suffix != ".sum")


# ------------------------------------------------------------------ captures
@pytest.fixture(scope="module")
def captured(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Module, Path]:
    """The module of the embedded model, captured with an empty cache, and that cache."""
    cache = tmp_path_factory.mktemp("captures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TILEWRIGHT_CACHE", str(cache))
        return capture_directory(tiny_llama), cache


def test_a_kept_capture_is_what_capturing_gives(
    captured: tuple[Module, Path], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, cache = captured
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(cache))
    assert len(entries(cache, kept.KIND)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(huggingface, "capture_directory", lambda *_, **__: pytest.fail("captured again"))
        assert capture_directory(tiny_llama) == module


def test_a_damaged_capture_is_made_again(
    captured: tuple[Module, Path], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, cache = captured
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(cache))
    monkeypatch.setattr(huggingface, "capture_directory", lambda *_, **__: module)
    (entry,) = entries(cache, kept.KIND)
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    assert capture_directory(tiny_llama) == module and entry.read_bytes() == whole


def test_pytorch_is_not_loaded_for_a_model_seen_before(
    captured: tuple[Module, Path], tiny_llama: Path
) -> None:
    code = (
        "import sys; from tilewright.capture import capture_directory; capture_directory(sys.argv[1]);"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    env = {**os.environ, "TILEWRIGHT_CACHE": str(captured[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_llama)], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.strip() == "[]"


def _edit_config(model: Path) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_theta": 12345.0}))


def _edit_header(model: Path) -> None:
    path = next(model.glob("*.safetensors"))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip() + b" " * 8
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


@pytest.mark.parametrize("edit", [_edit_config, _edit_header])
def test_a_changed_model_has_another_key(model: Path, edit: Callable[[Path], None]) -> None:
    before = kept.content_key(model, None)
    edit(model)
    assert before is not None and kept.content_key(model, None) not in (None, before)


def test_an_adapter_has_a_key_of_its_own(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert kept.content_key(model, adapter) != kept.content_key(model, None)


def test_models_that_transformers_does_not_know_have_no_key(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "nosuch"}')
    assert kept.content_key(model, None) is None
    assert kept.content_key(model / "absent", None) is None


# ------------------------------------------------------------------ rendered kernels
def test_kept_text_is_what_rendering_gives(own_cache: Path) -> None:
    kernel = parse_kernel(KERNEL)
    for name in ("baseline", "avx2"):
        first = rendered(kernel, TARGETS[name], {})
        assert first == render_kernel(kernel, TARGETS[name]) == rendered(kernel, TARGETS[name], {})
    assert len(entries(own_cache, "rendered")) == 2


def test_text_is_kept_by_content(own_cache: Path) -> None:
    target = TARGETS["avx2"]
    texts = {
        rendered(parse_kernel(KERNEL.replace("int4(group=32)", e)), target, {})
        for e in ("int4(group=32)", "int8(channel)")
    }
    assert len(texts) == 2 == len(entries(own_cache, "rendered"))


def test_our_own_code_is_part_of_the_name() -> None:
    assert (
        code_digest("tilewright.ir")
        != code_digest("tilewright.passes")
        != code_digest("tilewright.ir", "tilewright.passes")
    )


# ------------------------------------------------------------------ whole artifacts
@pytest.mark.slow
def test_a_warm_compile_writes_the_same_bytes(own_cache: Path, model: Path, tmp_path: Path) -> None:
    def compiled(name: str) -> dict[str, bytes]:
        out = tmp_path / name
        code = "from tilewright.cli.app import main; main()"
        subprocess.run(
            [sys.executable, "-c", code, "compile", str(model), "-o", str(out), "--recipe", "w4a8"],
            check=True,
        )
        return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}

    cold, warm = compiled("cold.tw"), compiled("warm.tw")
    assert WEIGHTS in cold
    assert cold == warm


# ------------------------------------------------------------------ packing
@pytest.mark.parametrize("shape", [(3, 32), (2, 5, 8), (0, 4), (7, 1)])
def test_largest_magnitude(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x.reshape(-1)[:3] = [-0.0, np.inf, -2.5e-41][: min(3, x.size)]
    np.testing.assert_array_equal(largest(x), np.abs(x).max(-1))


def test_pieces_of_one_shape_share_their_layout() -> None:
    e = parse_encoding("int4(group=32)")
    for seed in range(2):
        x = np.random.default_rng(seed).standard_normal((16, 64)).astype(np.float32)
        streams = e.encode(x)
        for name, a in e.unpack(e.pack(streams, x.shape), x.shape).items():
            np.testing.assert_array_equal(a, streams[name])
