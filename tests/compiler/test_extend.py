"""A user-defined encoding and op, each in one file: compile, dump, opt, exec, and both backends."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tilewright.backends.base import Support
from tilewright.backends.cpp.jit import compile_kernel
from tilewright.backends.registry import backend as registered
from tilewright.backends.registry import known_backends
from tilewright.backends.triton import interpret
from tilewright.cli.common import load_plugin
from tilewright.ir.encoding_registry import known_encodings, parse_encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.interp.tile import run_kernel
from tilewright.ir.ops.base import OPS
from tilewright.ir.text.tile_parser import parse_kernel
from tilewright.ir.tile.core import Schedule
from tilewright.ir.types import tensor

EXTEND = Path(__file__).resolve().parents[2] / "examples" / "extend"


@pytest.fixture(scope="module", autouse=True)
def plugins() -> None:
    if "ternary" not in known_encodings():
        load_plugin(EXTEND / "ternary.py")
    for name in ("squareplus", "cosine_linear"):
        if name not in OPS:
            load_plugin(EXTEND / f"{name}.py")
    if "numpy" not in known_backends():
        load_plugin(EXTEND / "numpy_backend.py")


def cli(*args: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "tilewright"), *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_encoding_round_trip() -> None:
    e = parse_encoding("ternary")
    x = np.random.default_rng(0).standard_normal((40, 48)).astype(np.float32)
    streams = e.encode(x)
    back = e.unpack(e.pack(streams, x.shape), x.shape)
    np.testing.assert_array_equal(e.decode(back), e.decode(streams))
    assert e.bits_per_element((64, 256)) == 2 + 32 / 256


def test_encoding_on_both_backends() -> None:
    text = """
    kernel @decode(%w: f32[48, 64] as ternary, %y: f32[48, 64]) {
      grid j in 48 by 16
      store %y[j:16, 0:64], load %w[j:16, 0:64]
      schedule * { threads j }
      schedule triton { }
    }"""
    kernel, e = parse_kernel(text), parse_encoding("ternary")
    x = np.random.default_rng(1).standard_normal((48, 64)).astype(np.float32)
    streams = e.encode(x)
    for run in (run_kernel, interpret.run_kernel, lambda k, a, s: compile_kernel(k, "avx2")(a, s)):
        arrays: dict[str, Any] = {"w": e.pack(streams, x.shape), "y": np.zeros((48, 64), np.float32)}
        run(kernel, arrays, {})
        np.testing.assert_array_equal(arrays["y"], e.decode(streams))


def test_encoding_through_the_command_line(tiny_llama: Path, tmp_path: Path) -> None:
    plugin = ["--plugin", str(EXTEND / "ternary.py")]
    out = tmp_path / "tiny.tw"
    cli("compile", str(tiny_llama), "-o", str(out), *plugin, "--weights", "ternary", "--activations", "f32")
    assert "as ternary" in cli("dump", str(out), "--stage", "encode-weights", *plugin)
    fused = tmp_path / "fuse.ir"
    fused.write_text(cli("dump", str(out), "--stage", "fuse", *plugin))
    assert "as ternary" in cli(
        "opt", str(fused), "--passes", "lower, expand-encodings", "--verify-each", *plugin
    )
    model = tw.load(out)
    assert model(np.arange(10)).shape == (10, 4096)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(16, 32), torch.nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(torch.ops.user.squareplus(self.a(x)))


def test_op_in_a_module_and_on_both_backends() -> None:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(6, 16)
    compiled = tw.compile(net, example_inputs=(x,), recipe="f32")
    assert any("squareplus" in s.text for s in compiled.stages)
    with torch.no_grad():
        want = net(x)
    np.testing.assert_allclose(compiled(x).numpy(), want.numpy(), atol=2e-6)

    from tilewright.ir.graph.builder import GraphBuilder
    from tilewright.passes.lower import lower

    b = GraphBuilder("forward")
    b.output(b.op("squareplus", b.add_input("x", tensor("f32", 5, 64))), "y")
    kernel = replace(lower(b.module()).kernels[0], schedules=(Schedule("triton", ()),))
    values = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
    names = [p.name for p in kernel.params]
    written = kernel.written()[0]
    arrays = {n: values.copy() if n != written else np.zeros_like(values) for n in names}
    interpret.run_kernel(kernel, arrays, {})
    np.testing.assert_allclose(arrays[written], (values + np.sqrt(values * values + 4)) / 2, atol=1e-6)


def test_op_in_text(tmp_path: Path) -> None:
    text = tmp_path / "g.ir"
    text.write_text(
        "graph @forward(%x: f32[8, 32]) -> f32[8, 32] {\n  %y = squareplus %x : f32[8, 32]\n  return %y\n}\n"
    )
    plugin = ["--plugin", str(EXTEND / "squareplus.py")]
    assert "squareplus" in cli("opt", str(text), "--passes", "canonicalize", *plugin)
    assert "all agree" in cli("exec", str(text), *plugin)


class Scores(torch.nn.Module):
    """A contraction of a user's own, and pointwise work after it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(16, 32)
        self.w = torch.nn.Parameter(torch.randn(40, 32))

    def forward(self, x: torch.Tensor) -> Any:
        return torch.nn.functional.silu(torch.ops.user.cosine_linear(self.a(x), self.w)) * 2


@pytest.mark.parametrize(
    ("recipe", "stored", "tolerance"), [("f32", "f32", 2e-6), ("bf16", "bf16", 2e-2), ("w8a8", "int8", 5e-2)]
)
def test_contraction_of_a_users_own(recipe: str, stored: str, tolerance: float) -> None:
    """Its weight is stored by the recipe, pointwise work follows it in its kernel, and it computes what
    PyTorch does.
    """
    torch.manual_seed(1)
    net, x = Scores().eval(), torch.randn(6, 16)
    compiled = tw.compile(net, example_inputs=(x,), recipe=recipe)
    stages = {s.name: s.text for s in compiled.stages}
    (declared,) = [line for line in stages["fuse"].splitlines() if line.startswith("weight @w ")]
    assert f"as {stored}" in declared
    (anchor,) = [line for line in stages["fuse"].splitlines() if "= cosine_linear" in line]
    (following,) = [line for line in stages["fuse"].splitlines() if "= silu" in line]
    assert re.findall(r" in (r\d+)", anchor) == re.findall(r" in (r\d+)", following) != []
    with torch.no_grad():
        want = net(x)
    np.testing.assert_allclose(compiled(x).numpy(), want.numpy(), atol=tolerance * float(want.abs().max()))


def test_the_page_quotes_the_example() -> None:
    """What docs/extending.md shows of the contraction is what the file says."""
    page = (EXTEND.parents[1] / "docs" / "extending.md").read_text()
    example = (EXTEND / "cosine_linear.py").read_text()
    quoted = [b for b in re.findall(r"^```python\n(.*?)^```", page, re.S | re.M) if "cosine_linear" in b]
    assert len(quoted) == 3
    assert [b for b in quoted if b.strip() not in example] == []


# ------------------------------------------------------------------ a backend
@pytest.mark.parametrize("recipe", ["f32", "w4a8"])
def test_backend_from_outside_the_package(recipe: str) -> None:
    """The kernels of a small model as NumPy functions, against those that C++ compiles."""
    torch.manual_seed(1)
    layers = (torch.nn.LayerNorm(64), torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 32))
    net, x = torch.nn.Sequential(*layers).eval(), torch.randn(5, 64)
    by_numpy = tw.compile(net, example_inputs=(x,), recipe=recipe, target="numpy")
    by_cpp = tw.compile(net, example_inputs=(x,), recipe=recipe)
    np.testing.assert_allclose(np.asarray(by_numpy(x)), np.asarray(by_cpp(x)), atol=1e-6)
    assert "for i in range(0, " in registered("numpy").source(by_numpy.program, "numpy")


def test_a_backend_without_libraries_says_so(tmp_path: Path) -> None:
    compiled = tw.compile(
        torch.nn.Linear(16, 16), example_inputs=(torch.ones(2, 16),), recipe="f32", target="numpy"
    )
    with pytest.raises(
        RefusedError, match="target numpy: refused: it builds no libraries, which an artifact holds"
    ):
        compiled.save(tmp_path / "m.tw")
    with pytest.raises(
        RefusedError, match="target numpy: refused: its programs run graphs and have no sessions"
    ):
        compiled.load()


def test_a_backend_file_is_short() -> None:
    assert len((EXTEND / "numpy_backend.py").read_text().splitlines()) < 200


def test_a_partitioner_is_told_why_not() -> None:
    types = (tensor("f32", 4, 64), tensor("f32", 32, 64))
    for target in ("native", "numpy", "triton"):
        assert tw.supports("linear", types, target=target)
    wrong = (types[0], tensor("f32", 32, 63))
    assert (
        tw.supports("linear", wrong).reason == "linear: expected x whose last axis is K = 63, got f32[4, 64]"
    )
    assert tw.supports("convolve", types).reason == "unknown op 'convolve'"


def test_a_partitioner_is_told_what_a_backend_cannot_render(monkeypatch: pytest.MonkeyPatch) -> None:
    no = Support("no registers left")
    monkeypatch.setattr(type(registered("numpy")), "supports", lambda *_: no, raising=False)
    assert tw.supports("softmax", (tensor("f32", 4, 64),), {"axis": -1}, target="numpy") is no
    assert tw.supports("softmax", (tensor("f32", 4, 64),), {"axis": -1})
