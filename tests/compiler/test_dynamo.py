"""`torch.compile(model, backend="tilewright")`: results, aliases and changes are those of eager PyTorch."""

from __future__ import annotations

import copy
import gc
import json
import logging
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tilewright.dynamo import backend
from tilewright.dynamo.compiling import compile_captured
from tilewright.dynamo.explain import explain
from tilewright.dynamo.options import parse_options
from tilewright.dynamo.part import Part
from tilewright.dynamo.report import GraphReport

Reports = list[GraphReport]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def compiled(f: Any, dynamic: bool | None = None, fullgraph: bool = True, **options: object) -> Any:
    return torch.compile(f, backend=backend, dynamic=dynamic, fullgraph=fullgraph, options=options or None)


def told(f: Any, dynamic: bool | None = None) -> tuple[Any, Reports]:
    """The compiled function, and what becomes of every graph of it."""
    found: Reports = []

    def own(gm: Any, inputs: Any) -> Any:
        return compile_captured(gm, inputs, parse_options(), found.append)

    return torch.compile(f, backend=own, dynamic=dynamic, fullgraph=True), found


def same(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


class Block(nn.Module):
    """Norm, attention, feed-forward, and a buffer that is returned."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.q, self.o = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.register_buffer("scale", torch.ones(width) * 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, w = x.shape
        q, k, v = self.q(self.norm(x)).view(b, s, 3, 4, w // 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, s, w)
        x = x + self.o(y) * self.scale
        return x + self.down(F.gelu(self.up(x)))


# ------------------------------------------------------------------ one graph
@torch.no_grad()
def test_a_block() -> None:
    m, x = Block().eval(), torch.randn(2, 5, 16)
    f, reports = told(m)
    same(f(x), m(x))
    assert reports[0].left == () and reports[0].ops > 10 and len(reports[0].partitions) == 1


@torch.no_grad()
def test_sizes_that_change_compile_once() -> None:
    m = Block().eval()
    f, reports = told(m, dynamic=True)
    for b, s in ((2, 5), (3, 9), (4, 2)):
        x = torch.randn(b, s, 16)
        same(f(x), m(x))
    assert len(reports) == 1


@torch.no_grad()
def test_parameters_that_change_are_seen() -> None:
    m, x = Block().eval(), torch.randn(2, 5, 16)
    f = compiled(m)
    f(x)
    m.up.weight.mul_(3)
    same(f(x), m(x))
    m.down.weight = nn.Parameter(torch.randn_like(m.down.weight))
    same(f(x), m(x))
    m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()})
    same(f(x), m(x))


@torch.inference_mode()
def test_parameters_made_in_inference_mode_are_read_anew() -> None:
    """PyTorch does not count their changes."""
    m, x = nn.Linear(8, 8), torch.randn(2, 8)
    f = compiled(m)
    same(f(x), m(x))
    m.weight.mul_(3)
    same(f(x), m(x))


@torch.no_grad()
def test_layers_of_one_class_share_a_program() -> None:
    """Each layer's weights are packed once, however the calls alternate, and go with the layer."""
    layers, x = [nn.Linear(8, 8).eval() for _ in range(3)], torch.randn(2, 8)
    f, reports = told(nn.Linear.forward)
    for _ in range(3):
        for layer in layers:
            same(f(layer, x), layer(x))
    assert len(reports) == 1
    parts = [p for p in gc.get_objects() if type(p) is Part and len(p._packs) == 3]
    assert len(parts) == 1
    del layers[1:], layer
    gc.collect()
    assert len(parts[0]._packs) == 1
    for _ in range(20):  # new layers may lie where old ones did
        layer = nn.Linear(8, 8).eval()
        same(f(layer, x), layer(x))


@torch.no_grad()
def test_arguments_that_are_modified() -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        y[1:].mul_(x[1:])
        return x + y

    x, y = torch.randn(3, 4), torch.randn(3, 4)
    a, b = x.clone(), y.clone()
    same(compiled(f)(x, y), f(a, b))
    same((x, y), (a, b))


@torch.no_grad()
def test_results_share_memory_as_eager_has_it() -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = x * 2
        return x[0], y, y[1]

    x = torch.randn(3, 4)
    first, y, second = compiled(f)(x)
    assert first.data_ptr() == x.data_ptr() and second.data_ptr() == y[1].data_ptr()


@torch.no_grad()
def test_arguments_of_any_strides() -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x @ y + 1

    x, y = torch.randn(8, 6).T[1:5], torch.randn(16, 3)[::2]
    same(compiled(f)(x, y), f(x, y))
    wide = torch.randn(1, 8).expand(4, 8)
    same(compiled(f)(wide, y), f(wide, y))


@torch.no_grad()
def test_structures_of_results() -> None:
    def f(x: torch.Tensor, n: int) -> dict[str, Any]:
        return {"sum": x.sum(), "list": [x + n, (x, 3)], "n": n, "nothing": None, "size": x.shape[0]}

    x = torch.randn(3, 4)
    got, want = compiled(f)(x, 2), f(x, 2)
    same(got["sum"], want["sum"])
    same(got["list"][0], want["list"][0])
    assert got["list"][1][0] is x and got["list"][1][1] == 3
    assert (got["n"], got["nothing"], got["size"]) == (2, None, 3)


# ------------------------------------------------------------------ what stays in PyTorch
def spectrum(x: torch.Tensor) -> torch.Tensor:
    return torch.fft.rfft(x * 2, dim=-1).abs() + 1


@torch.no_grad()
def test_an_operator_without_a_kernel_stays_in_pytorch(caplog: Any) -> None:
    x = torch.randn(3, 8)
    with caplog.at_level(logging.WARNING, "tilewright"):
        same(compiled(spectrum)(x), spectrum(x))
    (line,) = [r.message for r in caplog.records]
    assert line.startswith("tilewright: 2 of 4 ops compiled, 2 in PyTorch (aten._fft_r2c at test_dynamo.py:")


@torch.no_grad()
def test_strict_lists_them() -> None:
    with pytest.raises(Exception, match=r"2 of 4 ops are not supported:\n  aten._fft_r2c at test_dynamo.py"):
        compiled(spectrum, strict=True)(torch.randn(3, 8))


@torch.no_grad()
def test_strict_lists_what_is_found_later_too() -> None:
    """One operator has no importer, the other has one that refuses these arguments."""

    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(x).abs().sum() + F.adaptive_max_pool2d(x[None], 3).sum()

    with pytest.raises(Exception, match=r"aten\._fft_r2c") as e:
        compiled(f, strict=True)(torch.randn(8, 8))
    assert "adaptive_max_pool2d" in str(e.value)


@torch.no_grad()
def test_random_numbers_are_pytorchs() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(4) * torch.randn_like(x)

    x, g = torch.randn(3, 4), compiled(f)
    torch.manual_seed(7)
    got = g(x)
    torch.manual_seed(7)
    same(got, f(x))


@torch.no_grad()
def test_an_index_beyond_the_axis_is_an_error() -> None:
    table, f = nn.Embedding(5, 4), compiled(nn.Embedding(5, 4))
    assert f(torch.tensor([4])).shape == table(torch.tensor([4])).shape
    with pytest.raises(IndexError, match="index 5: expected 0 to 4"):
        f(torch.tensor([5]))


@torch.no_grad()
def test_without_a_compiler_everything_stays_in_pytorch(caplog: Any, monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    x = torch.randn(3, 8)
    with caplog.at_level(logging.WARNING, "tilewright"):
        same(compiled(lambda x: x * 3 + 1)(x), x * 3 + 1)
    (line,) = [r.message for r in caplog.records]
    assert line.startswith("tilewright: everything stays in PyTorch: no C++ compiler found")


@torch.no_grad()
def test_explain() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        y = spectrum(x)
        torch._dynamo.graph_break()
        return y.sum(-1)

    found = explain(f, torch.randn(3, 8))
    assert [g.in_pytorch for g in found.graphs] == [2, 0] and len(found.breaks) == 1
    text = str(found)
    assert "2 graphs\ngraph 0 (inference): 2 of 4 ops compiled, 2 in PyTorch (aten._fft_r2c" in text
    assert "graph breaks:\n  ×1" in text and "in PyTorch: aten._fft_r2c at test_dynamo.py" in text
    assert json.loads(found.to_json())["graphs"][1]["compiled"] == 1


# ------------------------------------------------------------------ training
@pytest.mark.slow
def test_gradients() -> None:
    m = Block()
    twin, x = copy.deepcopy(m), torch.randn(2, 5, 16, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    compiled(m)(x).square().sum().backward()
    twin(z).square().sum().backward()
    torch.testing.assert_close(x.grad, z.grad, rtol=1e-4, atol=1e-4)
    for p, q in zip(m.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)


def test_gradients_of_grouped_heads() -> None:
    """Two query heads share each head of keys and values; a mask of truths hides some keys."""

    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)

    mask = torch.ones(5, 6, dtype=torch.bool).tril(2)
    shapes = ((2, 4, 5, 8), (2, 2, 6, 8), (2, 2, 6, 8))
    given = [torch.randn(s, requires_grad=True) for s in shapes]
    twins = [x.detach().clone().requires_grad_() for x in given]
    g = compiled(f)
    same(g(*given), f(*twins))
    g(*given).square().sum().backward()
    f(*twins).square().sum().backward()
    for x, z in zip(given, twins, strict=True):
        torch.testing.assert_close(x.grad, z.grad, rtol=1e-4, atol=1e-4)


def test_training_follows_eager() -> None:
    """Twenty steps of AdamW: the loss is eager's at every step."""
    m = nn.Sequential(Block(), nn.Linear(16, 4))
    twin, x, y = copy.deepcopy(m), torch.randn(8, 5, 16), torch.randn(8, 5, 4)
    losses = []
    for model, f in ((m, compiled(m)), (twin, twin)):
        steps = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses.append([])
        for _ in range(20):
            loss = F.mse_loss(f(x), y)
            steps.zero_grad()
            loss.backward()
            steps.step()
            losses[-1].append(loss.item())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=0)
    assert losses[0][-1] < 0.7 * losses[0][0]


# ------------------------------------------------------------------ how it is called
OPTIONS: dict[str, tuple[dict[str, object], str]] = {
    "a key": ({"recipy": "w8a8"}, "unknown option 'recipy'\n  help: did you mean recipe?"),
    "a recipe": ({"recipe": "w8a9"}, "unknown recipe 'w8a9'\n  help: did you mean w8a8"),
    "a type": ({"strict": 1}, "option strict: expected bool, got 1"),
    "a mode": ({"mode": "defualt"}, "did you mean default?"),
    "a target": ({"target": "avx3"}, "avx3"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_wrong_options(name: str) -> None:
    options, message = OPTIONS[name]
    with pytest.raises(Exception) as e:
        compiled(lambda x: x + 1, **options)(torch.ones(2))
    assert message in str(e.value)


@torch.no_grad()
def test_a_recipe() -> None:
    m, x = Block(64).eval(), torch.randn(2, 5, 64)
    want = m(x)
    error = (compiled(m, recipe="w8a8")(x) - want).norm() / want.norm()
    assert 1e-5 < error < 0.05


@torch.no_grad()
def test_threads_take_turns() -> None:
    m = Block().eval()
    f, inputs = compiled(m), [torch.randn(2, 5, 16) for _ in range(10)]
    f(inputs[0])
    got: list[Any] = [None] * 10

    def call(i: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                got[i] = f(inputs[i])

    threads = [threading.Thread(target=call, args=(i,)) for i in range(10)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for g, x in zip(got, inputs, strict=True):
        same(g, m(x))


# ------------------------------------------------------------------ where parameters are held
class Holder:
    """Not a module: PyTorch does not list its parameters."""

    def __init__(self) -> None:
        self.linear = nn.Linear(4, 4)


class Held(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.holders, self.layers = [Holder() for _ in range(3)], [nn.Linear(4, 4) for _ in range(2)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for h in self.holders:
            x = h.linear(x).relu()
        for layer in self.layers:
            x = layer(x)
        return x


def test_modules_in_plain_lists_and_objects() -> None:
    """Dynamo finds all of their weights under one path of modules."""
    m, x = Held().eval(), torch.randn(2, 4)
    compiled = torch.compile(m, backend=backend, options={"strict": True})
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), m(x))
        m.layers[0].weight.mul_(2)
        torch.testing.assert_close(compiled(x), m(x))
