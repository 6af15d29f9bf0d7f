"""Layers traced once: the program is the one that tracing all of them gives, whatever layers do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.compiler import families
from tilewright.capture import huggingface, repeated
from tilewright.ir.text.graph_printer import print_module

QUICK = ("llama", "gpt2")


# ------------------------------------------------------------------ the families
def normal(text: str) -> str:
    """Names of values by the order in which they appear; constants that a layer's code makes, which all
    layers of a kind share, under one name."""
    text = re.sub(r"^weight @\S*lifted_tensor_\d+ .*\n", "", text, flags=re.M)
    text = re.sub(r"@[\w.]*lifted_tensor_\d+", "@constant", text)
    seen: dict[str, str] = {}
    return re.sub(r"%[\w.]+", lambda m: seen.setdefault(m.group(), f"%{len(seen)}"), text)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in families.FAMILIES]
)
def test_same_module(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = families.write_model(tmp_path / name, name)
    once = print_module(huggingface.capture_directory(directory))
    monkeypatch.setattr(repeated, "kinds_of", lambda model: [])
    assert normal(once) == normal(print_module(huggingface.capture_directory(directory)))


# ------------------------------------------------------------------ what layers may do
class Layer(nn.Module):
    """Multiplies by its own weight; `rule` does the rest."""

    def __init__(self, n: int, rule: Callable[..., Any], **attributes: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 1.5 + n))
        self.layer_idx = n
        self.rule = rule
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        traced.append(self.layer_idx)
        return self.rule(self, x * self.weight, *args, **kwargs)


class Model(nn.Module):
    """Three layers in a row, each called by `call`."""

    def __init__(self, layers: list[nn.Module], call: Callable[..., Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shared = torch.sin(x)
        for n, layer in enumerate(self.layers):
            out = self.call(layer, x, shared, n)
            x = out[0] if isinstance(out, tuple) else out
        return x + shared


#: positions of the layers whose code was run, each an integer or what stands for it
traced: list[Any] = []


def plain(layer: Layer, x: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) + sum(args)


def own_position(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    return x / (layer.layer_idx + 1)


def looked_up(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    return x * [1.0, 2.0, 3.0][layer.layer_idx]


def handed_on(layer: Layer, x: torch.Tensor) -> tuple[torch.Tensor, None]:
    return x + (0 if layer.layer_idx is None else 1), None


def scaled(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return x * layer.scale


def in_place(layer: Layer, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    total += 1
    return x + total


def narrower(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float64).to(torch.float32)[:, :4]


def two_results(layer: Layer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x + 1, x


def constant(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    return x * torch.tensor([2.0, 3.0, 4.0, 5.0])


def alone(layer: Any, x: torch.Tensor, shared: torch.Tensor, n: int) -> Any:
    return layer(x)


def with_shared(layer: Any, x: torch.Tensor, shared: torch.Tensor, n: int) -> Any:
    return layer(x, shared)


def with_other(layer: Any, x: torch.Tensor, shared: torch.Tensor, n: int) -> Any:
    return layer(x, shared * n)


def twice(layer: Any, x: torch.Tensor, shared: torch.Tensor, n: int) -> Any:
    return layer(layer(x))


def by_name(layer: Any, x: torch.Tensor, shared: torch.Tensor, n: int) -> Any:
    return layer(x=x)


def three(rule: Callable[..., Any], **attributes: Any) -> list[nn.Module]:
    return [Layer(n, rule, **{k: v[n] for k, v in attributes.items()}) for n in range(3)]


def same_layer() -> list[nn.Module]:
    a, b = Layer(0, plain), Layer(1, plain)
    return [a, b, a]


def with_buffers(*values: float) -> list[nn.Module]:
    layers = three(scaled)
    for layer, v in zip(layers, values, strict=True):
        layer.register_buffer("scale", torch.tensor([v] * 4), persistent=False)
    return layers


#: layers, how they are called, and how many of them are traced
CASES: dict[str, tuple[Callable[[], list[nn.Module]], Callable[..., Any], int]] = {
    "plain": (lambda: three(plain), alone, 1),
    "shared argument": (lambda: three(plain), with_shared, 1),
    "tuple": (lambda: three(handed_on), alone, 1),
    "equal attributes": (lambda: three(scaled, scale=(2.0, 2.0, 2.0)), alone, 1),
    "equal buffers": (lambda: with_buffers(2.0, 2.0, 2.0), alone, 1),
    "constant": (lambda: three(constant), alone, 1),
    "two kinds": (lambda: three(scaled, scale=(2.0, 3.0, 2.0)), alone, 2),
    "other buffers": (lambda: with_buffers(2.0, 3.0, 4.0), alone, 3),
    "own position": (lambda: three(own_position), alone, 3),
    "looked up": (lambda: three(looked_up), alone, 3),
    "another argument": (lambda: three(plain), with_other, 3),
    "in place": (lambda: three(in_place), with_shared, 3),
    "two results": (lambda: three(two_results), alone, 3),
    "by name": (lambda: three(plain), by_name, 3),
    "same layer": (same_layer, alone, 2),
    "twice": (lambda: three(plain), twice, 3),
    "by another type": (lambda: three(narrower), alone, 1),
}


def export(model: nn.Module, x: torch.Tensor) -> Any:
    return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("B")},), strict=False)


@pytest.mark.parametrize("case", CASES)
def test_same_results(case: str) -> None:
    layers, call, count = CASES[case]
    model, x = Model(layers(), call), torch.linspace(-1, 1, 20).reshape(5, 4)
    with torch.no_grad():
        want = model(x)
        traced.clear()
        program = repeated.export_repeated(model, lambda: export(model, x))
        ran = {getattr(n, "value", n) for n in traced}
        torch.testing.assert_close(program.module()(x), want, rtol=0, atol=0)
        torch.testing.assert_close(program.module()(x[:3]), model(x[:3]), rtol=0, atol=0)
    assert len(ran) == count
    assert not any("_layer" in str(n.target) for n in program.graph.nodes if n.op == "call_function")
    assert [type(m.layer_idx) for m in model.layers] == [int] * 3
