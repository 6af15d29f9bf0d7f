"""NaN and infinite weights are reported by name; rows beyond a scale's range get a wider scale."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tilewright as tw
from tilewright.backends.base import PendingBinaries
from tilewright.ir.errors import RefusedError
from tilewright.runtime.artifact import open_artifact

N, K = 32, 256
ENCODINGS = (
    "f32",
    "bf16",
    "f16",
    "int8(channel)",
    "int4(group=32)",
    "mxfp4",
    "nf4",
    "codebook2",
    "q4_0",
    "lsq(planes2)",
)
QUICK = ("f32", "int4(group=32)", "codebook2")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.fc = torch.nn.LayerNorm(K), torch.nn.Linear(K, N)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(x))


def compiled(net: torch.nn.Module, weights: str, activations: str = "f32") -> tw.Compiled:
    return tw.compile(
        net.eval(),
        example_inputs=(torch.randn(3, K),),
        recipe="f32",
        weights=weights,
        activations=activations,
    )


def refusal(net: torch.nn.Module, weights: str, path: Path) -> str:
    with pytest.raises(RefusedError) as caught:
        compiled(net, weights).save(path / "m.tw")
    assert not (path / "m.tw").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    "weights", [e if e in QUICK else pytest.param(e, marks=pytest.mark.slow) for e in ENCODINGS]
)
def test_no_numbers_are_told_by_name(weights: str, tmp_path: Path) -> None:
    net = Net()
    with torch.no_grad():
        net.fc.weight[3, 5], net.fc.weight[7, 9] = float("nan"), float("inf")
    said = "contains 1 NaN and 1 infinite values, the first at [3, 5]"
    said += "\n  help: repair the checkpoint: no encoding can store them"
    assert refusal(net, weights, tmp_path) == f"weight @fc.weight: refused: {said}"


def test_nothing_more_is_compiled_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[PendingBinaries] = []
    monkeypatch.setattr(PendingBinaries, "cancel", lambda pending: stopped.append(pending))
    net = Net()
    with torch.no_grad():
        net.fc.weight[3, 5] = float("nan")
    assert "contains 1 NaN" in refusal(net, "f32", tmp_path)
    assert len(stopped) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_in_norms_and_biases_too(value: float, tmp_path: Path) -> None:
    for name in ("norm.weight", "fc.bias"):
        net = Net()
        with torch.no_grad():
            net.get_parameter(name)[:] = value
        assert refusal(net, "bf16", tmp_path).startswith(f"weight @{name}: refused: contains ")


def test_a_mask_may_hold_minus_infinity() -> None:
    n = 24

    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((n, n), float("-inf")).triu(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x @ x.T @ torch.ones(3, n) + self.mask[:3], -1)

    net, x = Masked(), torch.randn(3, n)
    got = tw.compile(net.eval(), example_inputs=(x,), recipe="f32")(x)
    torch.testing.assert_close(torch.as_tensor(got), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "size", "row"),
    [
        ("int4(group=32)", 1e-9, 4),
        ("hqq(int4(group=32))", 5e5, 5),
        pytest.param("planes3(group=32)", 3e7, 31, marks=pytest.mark.slow),
    ],
)
def test_rows_beyond_a_scale_get_a_wider_one(size: float, row: int, weights: str, tmp_path: Path) -> None:
    net = Net()
    with torch.no_grad():
        net.fc.weight[row] *= size / net.fc.weight[row].abs().max()
    made = compiled(net, weights)
    made.save(tmp_path / "m.tw")
    stored = {w.name: str(w.type.encoding) for w in made.program.weights}
    assert "scale=bf16" in stored["fc.weight"] and made.recipe.wide == ("fc.weight",)
    assert any("wider scales" in note and "@fc.weight" in note for note in made.notes)
    recipe = json.loads(json.dumps(open_artifact(tmp_path / "m.tw").manifest.recipe))
    assert recipe["wide"] == ["fc.weight"]
    x = torch.randn(3, K)
    got, want = np.asarray(tw.load(tmp_path / "m.tw")(x.numpy())), net(x).detach().numpy()
    for n in (0, row):
        gap = np.linalg.norm((got - want)[:, n]) / np.linalg.norm(want[:, n] - net.fc.bias[n].item())
        assert gap < 0.4, n
    again = tw.compile(net, example_inputs=(x,), recipe=made.recipe)
    assert [s.text for s in again.stages] == [s.text for s in made.stages]


def test_ordinary_weights_keep_their_encoding(tmp_path: Path) -> None:
    made = compiled(Net(), "int4(group=32)")
    made.save(tmp_path / "m.tw")
    stored = {w.name: str(w.type.encoding) for w in made.program.weights}
    assert made.recipe.wide == () and stored["fc.weight"] == "int4(group=32)"


@pytest.mark.parametrize(
    ("weights", "size", "said", "other"),
    [
        ("q4_0", 6e5, "6e+05, beyond its range of q4_0", "bf16"),
        ("q4_k", 1e9, "1e+09, beyond its range of q4_k", "bf16"),
        ("bf16", 3.4e38, "3.4e+38, beyond its range of bf16(layout=panel)", "f32"),
    ],
)
def test_formats_of_a_fixed_range_refuse_by_name(
    weights: str, size: float, said: str, other: str, tmp_path: Path
) -> None:
    net = Net()
    with torch.no_grad():
        net.fc.weight[5] = net.fc.weight[5] / net.fc.weight[5].abs().max() * size
    hint = f"choose another encoding with a rule 'fc.weight' = '{other}'"
    got = refusal(net, weights, tmp_path)
    assert got == f"weight @fc.weight: refused: row 5 holds magnitudes up to {said}\n  help: {hint}"


@pytest.mark.parametrize("weights", ["q4_0", pytest.param("q4_k", marks=pytest.mark.slow)])
def test_small_rows_of_fixed_formats_become_zeros(weights: str) -> None:
    net, x = Net(), torch.randn(3, K)
    with torch.no_grad():
        net.fc.weight[5] *= 1e-9
    got = np.asarray(torch.as_tensor(compiled(net, weights)(x)))
    np.testing.assert_array_equal(got[:, 5], net.fc.bias[5].item())
