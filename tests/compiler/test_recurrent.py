"""Recurrent layers under `torch.compile(backend="tilewright")`: lengths, gradients, and what is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.compiler.test_dynamo_models import same, told
from tilewright.dynamo import backend


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


class Both(nn.Module):
    """An LSTM over a sequence of any length, then a GRU over its four last states."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(6, 5, 2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(5, 4)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> Any:
        y, (hidden, cells) = self.lstm(x)
        return self.gru(hidden, h), y, cells


@pytest.mark.slow
@torch.no_grad()
def test_lengths_that_change_compile_once() -> None:
    model = Both().eval()
    f, reports = told(model, dynamic=True)
    for batch, length in ((2, 8), (3, 9), (5, 3)):
        given = torch.randn(batch, length, 6), torch.randn(1, batch, 4)
        same(f(*given), model(*given), 1e-5)
    (report,) = reports
    assert not report.left and report.partitions[0].kernels < 40


@pytest.mark.slow
def test_gradients_are_eagers() -> None:
    """The forward pass is compiled, the backward pass of the layers is PyTorch's."""
    found = []
    for compiled in (False, True):
        model = Both().train()
        f, reports = told(model) if compiled else (model, [])
        x = torch.linspace(-1, 1, 48).reshape(2, 4, 6).requires_grad_()
        (z, last), y, cells = f(x, torch.ones(1, 2, 4))
        (y.square().sum() + last.sum() + z.square().sum() + cells.sum()).backward()
        found.append([x.grad, *(p.grad for p in model.parameters())])
    same(found[1], found[0], 1e-5)
    assert {x.op for r in reports for x in r.left} == {"tilewright.recurrent_gradients"}


@pytest.mark.slow
@torch.no_grad()
def test_projections_stay_in_pytorch() -> None:
    model = nn.LSTM(6, 5, proj_size=3)
    f, reports = told(model)
    x = torch.randn(4, 2, 6)
    same(f(x), model(x), 1e-6)
    ((left,),) = (r.left for r in reports)
    assert "projections of the state are not supported (leave proj_size out)" in left.why


@torch.no_grad()
def test_the_backend_is_given_recurrent_layers() -> None:
    """Dynamo leaves them to Python unless told otherwise, which asking for the backend does."""
    seen = []
    torch.compile(nn.LSTM(6, 5), backend=lambda gm, inputs: seen.append(gm) or gm)(torch.randn(3, 2, 6))
    assert seen and callable(backend)


@torch.no_grad()
def test_no_sequences_and_no_steps() -> None:
    """A program whose results are all empty has no kernels; no steps are an error, as in eager PyTorch."""
    model = nn.LSTM(6, 5, batch_first=True).eval()
    f = torch.compile(lambda x: model(x), backend=backend, options={"strict": True})
    y, (h, c) = f(torch.randn(0, 3, 6))
    assert (y.shape, h.shape, c.shape) == ((0, 3, 5), (1, 0, 5), (1, 0, 5))
    with pytest.raises(Exception, match="Expected sequence length to be larger than 0"):
        f(torch.randn(2, 0, 6))
