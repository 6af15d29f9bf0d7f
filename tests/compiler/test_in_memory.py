"""Programs loaded in the process that compiled them: no artifact, no copies, the artifact's results."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tilewright.backends.image import in_memory, packed
from tilewright.backends.native import NativeProgram
from tilewright.ir.errors import RefusedError
from tilewright.runtime.errors import ArtifactError
from tilewright.runtime.library import Library

IDS = np.arange(3, 25)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(torch.relu(self.a(x))) + x


def net(dtype: torch.dtype) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Net().eval().to(dtype), torch.randn(3, 16).to(dtype)


def no_folder(*_: object, **__: object) -> None:
    raise AssertionError("something was written")


def test_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = net(torch.float32)
    compiled = tw.compile(module, example_inputs=(x,), recipe="f32")
    monkeypatch.setattr("tilewright.artifact.writer.write_artifact", no_folder)
    monkeypatch.setattr("tempfile.TemporaryDirectory", no_folder)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_passed_and_given_back_by_address(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    module, x = net(dtype)
    compiled = tw.compile(module, example_inputs=(x,), recipe="bf16" if dtype == torch.bfloat16 else "f32")
    ready, seen = compiled.executable(), list[int]()
    run = ready.run

    def watched(graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        results = run(graph, inputs)
        seen.extend(a.ctypes.data for a in (*inputs.values(), *results.values()))
        return results

    monkeypatch.setattr(ready, "run", watched)
    y = compiled(x)
    assert isinstance(y, torch.Tensor) and y.dtype == dtype
    assert seen == [x.data_ptr(), y.data_ptr()]


def test_a_language_model_gives_the_bits_of_its_artifact(tiny_llama: Path, tmp_path: Path) -> None:
    compiled = tw.compile(tiny_llama, recipe="w4a8")
    compiled.save(tmp_path / "m.tw")
    model, saved = compiled.load(), tw.load(tmp_path / "m.tw")
    assert np.array_equal(model(IDS), saved(IDS))
    texts = [m.generate("The", 4, seed=1).text for m in (model, saved)]  # type: ignore[union-attr]
    assert texts[0] == texts[1] != ""
    logits = compiled(torch.from_numpy(IDS))
    assert isinstance(logits, torch.Tensor) and np.array_equal(logits.numpy(), saved(IDS))


def test_a_target_of_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = net(torch.float32)
    compiled = tw.compile(module, example_inputs=(x,), recipe="f32", target="avx2,avx512_bf16")
    monkeypatch.setattr("tilewright.artifact.libraries.cpu_features", lambda: frozenset({"fma"}))
    with pytest.raises(RefusedError) as e:
        compiled(x)
    assert e.value.where == "target avx2, avx512_bf16"
    assert e.value.message.startswith("this CPU lacks avx2")


def test_memory_that_is_not_the_weights_is_refused() -> None:
    module, x = net(torch.float32)
    compiled = tw.compile(module, example_inputs=(x,), recipe="f32")
    ready = compiled.executable()
    assert isinstance(ready, NativeProgram)
    right = in_memory(compiled.program, packed(compiled.program, compiled.store))
    content_id = ready.library.dll.tw_about().contents.id
    Library(ready.library.file, right, content_id.decode()).close()

    wrong = memoryview(mmap.mmap(-1, right.nbytes))
    cases = {
        "wrong first bytes": wrong,
        f"expected {right.nbytes} bytes, got {right.nbytes - 64}": right[:-64],
        "at least 64 bytes at a multiple of 64": right[1:],
    }
    for message, memory in cases.items():
        with pytest.raises(ArtifactError, match=message):
            Library(ready.library.file, memory, content_id.decode())
