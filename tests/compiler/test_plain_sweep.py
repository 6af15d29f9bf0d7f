"""Many small modules against eager PyTorch: zero-dimensional tensors, empty axes, odd structures, indices.

Those with kernels are compiled as one module, with results named after their cases.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

import tilewright as tw
from tests.compiler.test_plain_structure import assert_same
from tilewright.capture import capture_directory, capture_module
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.types import SymbolRange
from tilewright.runtime.errors import SessionError

Case = tuple[Callable[..., Any], tuple[torch.Tensor, ...]]


def r(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def t(*values: Any) -> torch.Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values)


class All(nn.Module):
    """Every case on its own inputs, and two linear layers that some of them call."""

    def __init__(self, cases: dict[str, Case]) -> None:
        super().__init__()
        self.cases, self.a, self.b = cases, nn.Linear(8, 16), nn.Linear(8, 16)

    def forward(self, inputs: dict[str, tuple[torch.Tensor, ...]]) -> dict[str, Any]:
        return {name: fn(*inputs[name], **self.own(fn)) for name, (fn, _) in self.cases.items()}

    def own(self, fn: Callable[..., Any]) -> dict[str, Any]:
        return {"m": self} if "m" in fn.__code__.co_varnames else {}


NO_AXES: dict[str, Case] = {
    "product of vectors": (lambda x: x @ x, (r(5),)),
    "scaled product": (lambda x, y: (x @ y) * 2, (r(3), r(3))),
    "sums": (lambda x: x.sum() * x.mean() + x.max(), (r(3, 4),)),
    "two scalars": (lambda x, y: x * y, (t(2.0), t(3.0))),
    "to integers": (lambda x: x.long() + 1, (t(2.5),)),
    "stacked": (lambda x, y: torch.stack([x, y]), (t(2.0), t(3.0))),
    "joined": (lambda x, y: torch.cat([x[None], y[None]]), (t(2.0), t(3.0))),
    "softmax of one": (lambda x: (x.softmax(0), x.log_softmax(-1), x.cumsum(0)), (t(2.0),)),
    "reductions of one": (lambda x: (x.sum(), x.sum(0), x.amax(0), x.mean(-1), x.prod(), x.argmax(),
    x.max(0)), (t(2.0),)),
    "ordered one": (lambda x: (x.topk(1), x.sort(), x.flip([])), (t(2.0),)),
    "stretched": (lambda x: (x.expand(2, 3) + 1, x.flatten(), x.reshape(1, 1)), (t(2.0),)),
    "squeezed": (lambda x: x.squeeze(), (r(1, 1),)),
    "condition": (lambda c, x: torch.where(c, x, 0.0), (t(True), r(3))),
    "vector": (lambda x: (x.softmax(0), x.log_softmax(0), F.layer_norm(x, (6,)), x.unbind()), (r(6),)),
    "einsum": (lambda x: torch.einsum("ij,jk->", x, x), (r(3, 3),)),
    "norm": (lambda x: (x.norm(), torch.outer(x[0], x[1])), (r(3, 2),)),
    "matrix by vector": (lambda y: (y @ y[0], y[0, :3] @ y, y[None] @ y[1]), (r(3, 4),)),
    "rank 0 beside a layer": (lambda x, p, m: m.a(x) * p, (r(2, 3, 8), t(0.5))),
    "number of a tensor": (lambda x, i: (x * x.sum().item(), i.long() + i.item(), x.sum().item()),
    (r(3), t(3))),
}  # fmt: skip
NO_ELEMENTS: dict[str, Case] = {
    "no rows": (lambda x: (x + 1, x.sum(0), x.sum(1), x.sum(), x.mean()), (r(0, 4),)),
    "no columns": (lambda x: (x + 1, x.sum(0), x.sum(1), x.mean(1)), (r(4, 0),)),
    "empty products": (lambda x, y, m: (x @ y, y @ x, m.a(torch.ones(0, 8) + x.sum())), (r(4, 0), r(0, 4))),
    "joined with nothing": (
        lambda x, y, z: (torch.cat([x, y]), torch.cat([z, y], 1)),
        (r(0, 4), r(2, 4), r(2, 0)),
    ),
    "rows of nothing": (
        lambda x: (x.softmax(-1), x.softmax(0), F.layer_norm(x, (4,)), x.cumsum(1)),
        (r(0, 4),),
    ),
    "empty views": (lambda x: (x.reshape(4, 0), x.mT + 1, x[:, :2], x.expand(3, 0, 4) * 2), (r(0, 4),)),
    "no indices": (
        lambda w, i: (F.embedding(i, w), w[i], w.index_select(0, i)),
        (r(4, 3), torch.zeros(0, dtype=torch.long)),
    ),
}
STRUCTURES: dict[str, Case] = {
    "constants": (lambda x: (x, 3, "a", None, torch.ones(2), torch.tensor(3.0), [], {}), (r(6),)),
    "constants only": (lambda x: (3, None), (r(6),)),
    "nothing": (lambda x: None, (r(6),)),
    "sizes": (lambda x: (x.shape[0], x.numel(), tuple(x.shape)), (r(6),)),
    "one tensor twice": (lambda x: (x, [x, (x + 1,) * 2]), (r(3, 3),)),
    "of the model": (lambda x, m: (m.a.weight, m.b.bias), (r(3),)),
}
LAYERS: dict[str, Case] = {
    "of zeros": (lambda x, m: m.a(torch.zeros_like(x)), (r(2, 3, 8),)),
    "of a count": (lambda x, m: m.a(torch.arange(8.0).expand(3, 8)) + x.sum(), (r(2, 3, 8),)),
    "gated": (lambda x, m: F.silu(m.a(x)) * m.b(x), (r(2, 3, 8),)),
    "gated by 4 axes": (lambda x, m: torch.sigmoid(m.a(x)) * m.b(x), (r(2, 2, 3, 8),)),
    "added per position": (lambda x, p, m: F.silu(m.a(x)) + p, (r(2, 3, 8), r(1, 3, 16))),
    "added without batch": (lambda x, p, m: m.a(x) + p, (r(2, 3, 8), r(3, 16))),
    "scaled per sequence": (lambda x, p, m: m.a(x) * p, (r(2, 3, 8), r(2, 1, 1))),
    "a count beside": (lambda x, m: m.a(x) * torch.arange(3.0)[None, :, None], (r(2, 3, 8),)),
    "sharing a row": (lambda x, p, m: m.a(x) * p, (r(2, 3, 8), r(1, 1, 16))),
}
LOW = torch.finfo(torch.float32).min
HIDE = torch.tensor(
    [[True, True, True], [True, False, False], [False, True, False]]
)  # nothing, two, and two keys that are seen


def masked(value: float) -> torch.Tensor:
    return torch.zeros(1, 1, 3, 3).masked_fill(HIDE, value)


def attend(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(x, x * 2, x + 1, attn_mask=mask)


X = r(2, 2, 3, 4)
#: rows that may attend to nothing: zeros by attention with -inf or a mask of truths, uniform by lowest
#: numbers, NaN by hand
MASKS: dict[str, Case] = {
    "truths": (attend, (X, ~HIDE)),
    "truths of one row": (attend, (X, ~HIDE[:1])),
    "-inf": (attend, (X, masked(-torch.inf))),
    "lowest": (attend, (X, masked(LOW))),
    "-inf and lowest": (attend, (X, masked(-torch.inf).where(HIDE.T, LOW))),
    "made of truths": (lambda x, h: attend(x, torch.where(h, 0.0, -torch.inf)), (X, HIDE)),
    "made of truths, lowest": (lambda x, h: attend(x, torch.where(h, 0.0, LOW)), (X, HIDE)),
    "(1 - mask) * lowest": (lambda x, h: attend(x, (1.0 - h.float()) * LOW), (X, HIDE)),
    "by hand": (lambda x, h: (x @ x.mT).masked_fill(h, -torch.inf).softmax(-1) @ x, (X, HIDE)),
    "by hand, lowest": (lambda x, h: (x @ x.mT).masked_fill(h, LOW).softmax(-1) @ x, (X, HIDE)),
    "by hand, added": (lambda x, k: ((x @ x.mT) + k).softmax(-1), (X, masked(LOW))),
    "logarithms": (lambda x, k: (x[..., :3] + k).log_softmax(-1), (X, masked(LOW))),
    "infinite scores": (lambda x: x.softmax(-1),
    (torch.tensor([[torch.inf, 1.0], [-torch.inf, 1.0], [torch.nan, 1.0]]),)),
}  # fmt: skip
INDICES: dict[str, Case] = {
    "entry": (lambda x, i: (x[i], x.index_select(0, i), x.gather(0, i)), (r(5), t(3))),
    "entry from the end": (lambda x, i: x[:, i], (r(2, 5), t(-3))),
    "embedding of one": (lambda w, i: F.embedding(i, w), (r(5, 3), t(3))),
    "rows": (lambda w, i: (w[i], w[i, i + 1], w[:, i]), (r(4, 3), t(1, -2))),
    "along": (lambda w, i: (torch.take_along_dim(w, i, 0), w.gather(0, i)), (r(4, 3), t([[1, 2, 1]]))),
    "classes": (lambda i: F.one_hot(i, 4), (t(1, 2, 1),)),
}
CASES = NO_AXES | NO_ELEMENTS | STRUCTURES | LAYERS | MASKS | INDICES


def test_all() -> None:
    torch.manual_seed(0)
    model = All(CASES)
    inputs = {name: args for name, (_, args) in CASES.items()}
    got, want = tw.compile(model, example_inputs=(inputs,), recipe="f32")(inputs), model(inputs)
    assert isinstance(got, dict) and list(got) == list(CASES)
    for name in CASES:
        try:
            assert_same(got[name], want[name])
        except AssertionError as e:
            raise AssertionError(f"{name}: {e}") from e


class Of(nn.Module):
    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *args: Any) -> Any:
        return self.fn(*args)


# ------------------------------------------------------------------ sizes that may be 0
def test_a_batch_of_none() -> None:
    """A size is 0 where its Dim allows that, which PyTorch's do unless told."""
    lin = nn.Linear(4, 3)
    model = Of(
        lambda x, y: {
            "rows": F.silu(lin(x)),
            "sum": x.sum(0),
            "a": x.mean() * x.shape[0] ** 0.5,
            "t": torch.cat([x, y]),
        }
    )
    model.lin = lin
    sizes = (({0: Dim("B", max=9)}, None),)
    compiled = tw.compile(model, example_inputs=(r(3, 4), r(2, 4)), dynamic_shapes=sizes, recipe="f32")
    for rows in (3, 0, 9):
        x = r(rows, 4)
        assert_same(compiled(x, r(2, 4)), {k: v.detach() for k, v in model(x, r(2, 4)).items()})
    for needs, fn in (
        (1, lambda x: x[-1] + x[0]),
        (2, lambda x: x[1]),
        (1, lambda x: x.amax(0)),
        (1, lambda x: x.argmax()),
    ):
        captured, _ = capture_module(Of(fn), (r(3, 4),), (({0: Dim("B", max=9)},),))
        assert captured.symbols == (("B", SymbolRange(needs, 9)),)  # as PyTorch, which has no row of none
    some = (({0: Dim("B", min=1, max=9)},),)
    least = tw.compile(Of(lambda x: x + 1), example_inputs=(r(3, 4),), dynamic_shapes=some, recipe="f32")
    with pytest.raises(SessionError, match="B is 0, the model was compiled for 1 to 9"):
        least(r(0, 4))


# ------------------------------------------------------------------ indices outside
class Lookups(nn.Module):
    """Everything that reads by an index, of inputs and computed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids: torch.Tensor, x: torch.Tensor, picks: torch.Tensor, one: torch.Tensor) -> Any:
        along = picks[:, None].expand(-1, x.shape[1])
        return (
            self.table(ids), x.index_select(0, picks), x[picks - 1], x.gather(0, along),
            x[one], F.one_hot(ids, 12), x[torch.arange(2)],
        )  # fmt: skip


def test_indices_outside_are_errors() -> None:
    model = Lookups()
    good = {"ids": t([[0, 9], [3, 4]]), "x": r(5, 3), "picks": t(0, 4), "one": t(-5)}
    sizes = {"ids": None, "x": {0: Dim("R", min=2, max=50)}, "picks": None, "one": None}
    compiled = tw.compile(model, example_inputs=good, dynamic_shapes=sizes, recipe="f32")
    assert_same(compiled(**good), model(**good))
    line = Lookups.forward.__code__.co_firstlineno
    first, second = (f"along axis 0\n  help: it is read at test_plain_sweep.py:{line + n}" for n in (3, 4))
    for name, value, message in [
        ("ids", t([[0, 10], [3, 4]]), f"index 10: expected 0 to 9, of table.weight {first} (table)"),
        ("ids", t([[0, 9], [-1, 4]]), f"index -1: expected 0 to 9, of table.weight {first} (table)"),
        ("picks", t(0, 5), f"index 5: expected 0 to 4, of x {first}"),
        ("picks", t(-1, 3), f"index -1: expected 0 to 4, of x {first}"),
        ("one", t(5), f"index 5: expected -5 to 4, of x {second}"),
        ("one", t(-6), f"index -6: expected -5 to 4, of x {second}"),
    ]:
        with pytest.raises(SessionError) as e:
            compiled(**(good | {name: value}))
        assert str(e.value) == f"input {name}: {message}"
    assert_same(compiled(**good), model(**good))
    computed = tw.compile(Of(lambda x, i: x[i * 2]), example_inputs=(r(5, 3), t(1, 2)), recipe="f32")
    assert_same(computed(r(5, 3), t(-2, 2)), r(5, 3)[t(-4, 4)])
    with pytest.raises(SessionError) as e:
        computed(r(5, 3), t(1, 3))
    assert str(e.value).startswith(
        "an index computed by the model: index 6: expected -5 to 4, of args_0 along axis 0\n"
    )


def test_language_models_check_ids_before_a_step(tiny_llama: Path) -> None:
    assert "checks" not in dict(capture_directory(tiny_llama).meta)


# ------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x * (x.sum().item() + 1), "a Python number that depends on the data"),
        (lambda x: torch.full((x.long().sum().item(),), 1.0), "the size u0 depends on data"),
    ],
)
def test_numbers_that_data_decides(fn: Callable[..., Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as e:
        capture_module(Of(fn), (torch.ones(3),))
    assert "test_plain_sweep.py:" in str(e.value)


def test_sizes_in_arithmetic() -> None:
    """Numbers computed from sizes are computed anew for each size."""
    fn = Of(lambda x: x / x.shape[0] ** 0.5 + (x.shape[0] / 3) * x.shape[1] - x.shape[0] ** 2)
    compiled = tw.compile(
        fn, example_inputs=(r(3, 4),), dynamic_shapes=(({0: Dim("B", min=2, max=9)},),), recipe="f32"
    )
    for rows in (2, 3, 9):
        np.testing.assert_allclose(np.asarray(compiled(r(rows, 4))), fn(r(rows, 4)).numpy(), rtol=1e-5)
