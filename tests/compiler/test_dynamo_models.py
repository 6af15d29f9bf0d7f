"""Models of transformers and small ones under `torch.compile(backend="tilewright")`, beside eager PyTorch.

Nothing of them is left to it. One of each runs every day, the others take turns.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from tests.compiler import hf_models, small_models
from tilewright.dynamo import backend
from tilewright.dynamo.compiling import compile_captured
from tilewright.dynamo.options import parse_options
from tilewright.dynamo.report import GraphReport

Reports = list[GraphReport]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def told(f: Any, dynamic: bool | None = None) -> tuple[Any, Reports]:
    """The compiled function, and what becomes of every graph of it, as Dynamo captures them for `backend`."""
    found: Reports = []
    assert callable(backend)

    def own(gm: Any, inputs: Any) -> Any:
        return compile_captured(gm, inputs, parse_options(), found.append)

    return torch.compile(f, backend=own, dynamic=dynamic), found


def tensors(x: Any) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(x) if isinstance(t, torch.Tensor)]


def same(got: Any, want: Any, tolerance: float = 1e-4) -> None:
    """Equal up to a part of the largest element."""
    for g, w in zip(tensors(got), tensors(want), strict=True):
        assert (g.dtype, g.shape) == (w.dtype, w.shape)
        torch.testing.assert_close(g, w, rtol=0, atol=tolerance * max(1e-6, float(w.abs().max())))


@pytest.mark.parametrize(
    "name", [n if n == "bert" else pytest.param(n, marks=pytest.mark.slow) for n in hf_models.MODELS]
)
@torch.no_grad()
def test_a_family(name: str) -> None:
    model, arguments = hf_models.made(name)
    f, reports = told(model)
    same(f(**arguments), model(**arguments))
    assert not [x.op for r in reports for x in r.left]


@pytest.mark.parametrize(
    "name", [n if n == "rgcn" else pytest.param(n, marks=pytest.mark.slow) for n in small_models.MODELS]
)
@torch.no_grad()
def test_a_small_model(name: str) -> None:
    """Nothing is left, and one compile serves every batch."""
    small, model = small_models.MODELS[name], small_models.made(name)
    f, reports = told(model, dynamic=None if small.sized else True)
    for batch in (2, 3, 5):
        arguments = small.draw(batch)
        if small.sized:
            for x in arguments:
                torch._dynamo.mark_dynamic(x, 0)
        same(f(*arguments), model(*arguments))
    (report,) = reports
    assert not report.left


@pytest.mark.slow
@torch.no_grad()
def test_bfloat16() -> None:
    """As far from f32 as eager PyTorch in bfloat16 is."""
    model, arguments = hf_models.made("bert")
    want = model(**arguments)[0]
    model = model.to(torch.bfloat16)
    f, reports = told(model)
    got, eager = f(**arguments)[0], model(**arguments)[0]
    assert got.dtype == torch.bfloat16 and not reports[0].left
    assert (got.float() - want).norm() <= 1.1 * (eager.float() - want).norm()


@pytest.mark.slow
@torch.no_grad()
def test_batches_and_lengths_that_change_compile_once() -> None:
    model, _ = hf_models.made("bert")
    f, reports = told(model, dynamic=True)
    for batch, length in ((2, 12), (3, 9), (5, 17)):
        x = hf_models.ids(batch, length)
        same(f(input_ids=x), model(input_ids=x))
    assert len(reports) == 1


@pytest.mark.slow
@pytest.mark.parametrize("cache", ("static", "dynamic"))
def test_generate(cache: str) -> None:
    """The tokens of eager PyTorch, every graph compiled whole."""
    model, arguments = hf_models.made("llama")
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    want = model.generate(arguments["input_ids"], **settings)
    model.forward, reports = told(model.forward)
    got = model.generate(arguments["input_ids"], cache_implementation=cache, **settings)
    assert torch.equal(got, want) and reports and not any(r.left for r in reports)
