"""Plain modules through `tilewright.compile`: the compiled result equals eager for several batch sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch.export import Dim

import tilewright as tw
from tilewright.runtime.errors import SessionError

LENGTH = 12
SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}  # fmt: skip
ENCODERS = {
    "bert": lambda: hf.BertModel(hf.BertConfig(**SMALL), add_pooling_layer=False),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(pad_token_id=1, **SMALL), add_pooling_layer=False),
    "distilbert": lambda: hf.DistilBertModel(
        hf.DistilBertConfig(
            vocab_size=96, dim=64, n_layers=2, n_heads=4, hidden_dim=96, max_position_embeddings=64
        )
    ),
}


class Hidden(torch.nn.Module):
    """The last hidden state of an encoder."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def text(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens; the last sequence is padded."""
    mask = torch.ones(batch, LENGTH, dtype=torch.long)
    mask[-1, 8:] = 0
    return torch.randint(3, 96, (batch, LENGTH)), mask


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Weights far from their initial values, so that every one of them matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return module.eval()


@pytest.mark.parametrize(
    "name",
    [
        "bert",
        pytest.param("roberta", marks=pytest.mark.slow),
        pytest.param("distilbert", marks=pytest.mark.slow),
    ],
)
def test_encoders(name: str) -> None:
    model = shaken(Hidden(ENCODERS[name]()))
    batch = Dim("B", min=1, max=16)
    shapes = {"input_ids": {0: batch}, "attention_mask": {0: batch}}
    compiled = tw.compile(model, example_inputs=text(2), dynamic_shapes=shapes, recipe="f32")
    for count in (2, 3, 1):
        ids, mask = text(count)
        with torch.no_grad():
            want = model(ids, mask)
        got = compiled(ids, mask)
        assert isinstance(got, torch.Tensor)
        assert float((got - want).abs().max()) <= 1e-5 * float(want.abs().max())
    assert isinstance(compiled(ids.numpy(), attention_mask=mask.numpy()), np.ndarray)


def test_mlp_with_dynamic_batch() -> None:
    model = shaken(
        torch.nn.Sequential(
            torch.nn.Linear(20, 48), torch.nn.GELU(), torch.nn.LayerNorm(48), torch.nn.Linear(48, 5)
        )
    )
    compiled = tw.compile(
        model,
        example_inputs=(torch.randn(3, 20),),
        dynamic_shapes=({0: Dim("B", min=1, max=64)},),
        recipe="f32",
    )
    for count in (1, 3, 17, 64):
        x = torch.randn(count, 20)
        with torch.no_grad():
            want = model(x)
        np.testing.assert_allclose(
            compiled(x).numpy(), want.numpy(), rtol=0, atol=1e-5 * float(want.abs().max())
        )
    with pytest.raises(SessionError, match="B is 65, the model was compiled for 1 to 64"):
        compiled(torch.randn(65, 20))
    with pytest.raises(SessionError, match=r"expected f32\[B, 20\], got float32 of shape \[20\]"):
        compiled(torch.randn(20))


class Both(torch.nn.Module):
    """An embedding of ids, scaled, where a mask says so."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(50, 16)

    def forward(self, ids: torch.Tensor, scale: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return torch.where(keep[:, None], self.table(ids) * scale, 0.0)


def test_inputs_of_another_dtype() -> None:
    ids, scale, keep = torch.tensor([3, 49, 7]), torch.randn(16), torch.tensor([True, False, True])
    model = shaken(Both())
    compiled = tw.compile(model, example_inputs=(ids, scale, keep), recipe="f32")
    with torch.no_grad():
        want = model(ids, scale, keep)
    for same in (ids, ids.int(), ids.short(), ids.byte(), ids.numpy().astype(np.uint64), ids.tolist()):
        np.testing.assert_array_equal(np.asarray(compiled(same, scale, keep)), want.numpy())
    widened = compiled(ids, scale.bfloat16(), keep)
    np.testing.assert_array_equal(
        np.asarray(widened), model(ids, scale.bfloat16().float(), keep).detach().numpy()
    )
    far = ids.numpy().astype(np.uint64) + 2**63
    for args, message in [
        (
            (ids, scale.double(), keep),
            r"input scale: expected f32\[16\], got float64 of shape \[16\]\n.*x.to\(torch.float32\)",
        ),
        (
            (ids, ids.repeat(6)[:16], keep),
            r"input scale: expected f32\[16\], got int64 of shape \[16\]\n.*astype\(np.float32\)",
        ),
        (
            (ids.float(), scale, keep),
            r"input ids: expected i64\[3\], got float32 of shape \[3\]\n.*x.to\(torch.int64\)",
        ),
        ((keep, scale, keep), r"input ids: expected i64\[3\], got bool of shape \[3\]"),
        ((ids, scale, keep.int()), r"input keep: expected bool\[3\], got int32 of shape \[3\]\n.*np.bool"),
        ((far, scale, keep), f"input ids: expected i64, got uint64 with {3 + 2**63}, which i64 cannot hold"),
    ]:
        with pytest.raises(SessionError, match=message):
            compiled(*args)


def test_types_of_inputs_and_results() -> None:
    """bf16 is torch's own to torch, and float32 to NumPy, which has none; what bf16 cannot hold is
    refused."""
    module = torch.nn.Linear(8, 3, dtype=torch.bfloat16)
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    compiled = tw.compile(module, example_inputs=(x,), recipe="f32")
    got = compiled(x)
    with torch.no_grad():
        want = module(x)
    assert isinstance(got, torch.Tensor) and got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want)
    plain = compiled(x.float().numpy())
    assert isinstance(plain, np.ndarray) and plain.dtype == np.float32
    np.testing.assert_array_equal(plain, got.float().numpy())
    np.testing.assert_array_equal(compiled(x.view(torch.uint16).numpy()), plain)
    with pytest.raises(
        SessionError,
        match=r"input input: expected bf16, got float32 with 0\.1[0-9]*, which bf16 cannot represent",
    ):
        compiled(np.full((2, 8), 0.1, np.float32))
    with pytest.raises(
        SessionError,
        match=r"expected bf16\[2, 8\], got float64 of shape \[2, 8\]\n.*pass bf16 as float32 with values",
    ):
        compiled(x.double())


def test_a_tensor_given_twice_is_two_inputs() -> None:
    class Difference(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a - 2 * b

    x, y = torch.randn(3), torch.randn(3)
    compiled = tw.compile(Difference(), example_inputs=(x, x), recipe="f32")
    torch.testing.assert_close(compiled(x, y), x - 2 * y)


def test_doubles_and_tables_of_integers_keep_their_type() -> None:
    """The default recipe stores f32 weights in bf16, and leaves others alone."""

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = torch.nn.Linear(5, 4, dtype=torch.float64)
            self.table = torch.nn.Parameter(torch.arange(4096.0).double() / 7, requires_grad=False)
            self.register_buffer("places", torch.arange(4096) * 2**31 + 1)

        def forward(self, x: torch.Tensor, n: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.line(x)
            return {"y": y, "norm": torch.nn.functional.layer_norm(y, (4,)), "soft": (y * 1e33).softmax(-1),
            "at": self.places[n],
                    "table": self.table[n], "counts": n[None] @ n[:, None]}  # fmt: skip

    model, x, n = Mixed(), torch.randn(3, 5, dtype=torch.float64), torch.tensor([4095, 3, 70])
    got = tw.compile(model, example_inputs=(x, n))(x, n)
    assert isinstance(got, dict)
    for name, want in model(x, n).items():
        assert got[name].dtype == want.dtype, name
        torch.testing.assert_close(got[name], want.detach(), rtol=1e-13, atol=1e-13)
