"""Plain modules with dynamic batch and length: both stay symbols through every op along a length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch.export import Dim
from torch.nn import functional as F

import tilewright as tw
from tests.compiler.test_plain_compiled import ENCODERS, SMALL, Hidden, shaken
from tilewright.ir.errors import UnsupportedError
from tilewright.runtime.errors import SessionError

B, S = Dim("B", min=1, max=8), Dim("S", min=2, max=48)
SIZES = ((2, 12), (3, 7), (1, 33), (8, 48), (1, 2))


def text(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens; the last sequence is padded."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, length // 2 + 1 :] = 0
    return torch.randint(3, 96, (batch, length)), mask


@pytest.mark.parametrize(
    "name",
    [
        "bert",
        pytest.param("roberta", marks=pytest.mark.slow),
        pytest.param("distilbert", marks=pytest.mark.slow),
    ],
)
def test_encoders_of_any_length(name: str) -> None:
    model = shaken(Hidden(ENCODERS[name]()))
    shapes = {"input_ids": {0: B, 1: S}, "attention_mask": {0: B, 1: S}}
    compiled = tw.compile(model, example_inputs=text(2, 12), dynamic_shapes=shapes, recipe="f32")
    for batch, length in SIZES:
        ids, mask = text(batch, length)
        with torch.no_grad():
            want = model(ids, mask)
        got = compiled(ids, mask)
        assert isinstance(got, torch.Tensor)
        assert float((got - want).abs().max()) <= 1e-5 * float(want.abs().max()), (batch, length)
    with pytest.raises(SessionError, match="S is 49, the model was compiled for 2 to 48"):
        compiled(*text(2, 49))


DECODERS: dict[str, Callable[[], torch.nn.Module]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=2, **SMALL)),
    "llama, eager": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(num_key_value_heads=2, attn_implementation="eager", **SMALL)
    ),
    "mistral": lambda: hf.MistralForCausalLM(
        hf.MistralConfig(num_key_value_heads=2, sliding_window=5, **SMALL)
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64)
    ),
}


@pytest.mark.parametrize(
    "name", [n if n == "llama" else pytest.param(n, marks=pytest.mark.slow) for n in DECODERS]
)
def test_decoders_with_padding_on_either_side(name: str) -> None:
    """The whole model as a module, its own output class included. The first queries of a sequence padded on
    its left see nothing: zeros where PyTorch's attention is called, a uniform mean where masks are added by
    hand."""
    model = shaken(DECODERS[name]())
    model.config.use_cache = False  # type: ignore[union-attr]
    shapes = {"input_ids": {0: B, 1: S}, "attention_mask": {0: B, 1: S}}

    def padded(batch: int, length: int, left: bool) -> dict[str, torch.Tensor]:
        ids, mask = text(batch, length)
        return {"input_ids": ids, "attention_mask": mask.flip(1) if left else mask}

    compiled = tw.compile(model, example_inputs=padded(2, 12, True), dynamic_shapes=shapes, recipe="f32")
    for batch, length in SIZES:
        for left in (True, False):
            inputs = padded(batch, length, left)
            with torch.no_grad():
                want = model(**inputs)
            got: Any = compiled(**inputs)
            assert type(got) is type(want)
            assert float((got.logits - want.logits).abs().max()) <= 1e-5 * float(want.logits.abs().max()), (
                batch,
                length,
                left,
            )
    with pytest.raises(SessionError, match="input input_ids: index 96: expected 0 to 95, of "):
        compiled(**(inputs | {"input_ids": inputs["input_ids"] + 96 - int(inputs["input_ids"].max())}))


class Grouped(torch.nn.Module):
    """Causal attention whose key heads serve two query heads each."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = torch.nn.Linear(16, 32), torch.nn.Linear(16, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, 4, 8).transpose(1, 2)
        k, v = self.kv(x).view(batch, length, 4, 8).transpose(1, 2).chunk(2, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return y.transpose(1, 2).reshape(batch, length, 32)


class Of(torch.nn.Module):
    """A function of one tensor [B, S, 16] as a module."""

    def __init__(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(x)


ALONG: dict[str, Callable[[], torch.nn.Module]] = {
    "grouped attention": Grouped,
    "mean over tokens": lambda: Of(lambda x: x.mean(1)),
    "largest over tokens": lambda: Of(lambda x: x.amax(dim=(1, 2))),
    "norm of a turned tensor": lambda: Of(lambda x: F.layer_norm(x.transpose(1, 2), x.shape[1:2])),
    "softmax over tokens": lambda: Of(lambda x: torch.softmax(x.transpose(1, 2), -1) @ x),
    "rows of all tokens": lambda: Of(lambda x: torch.sin(x.reshape(-1, 16)) + 1.0),
    "tokens joined": lambda: Of(lambda x: torch.cat([x, x[:, :1], -x], 1)),
    "lengths joined": lambda: Of(lambda x: torch.cat([x.transpose(1, 2), x.transpose(1, 2).cos()], -1)),
    "places": lambda: Of(lambda x: x + torch.arange(x.shape[1]).float()[None, :, None] / x.shape[1]),
    "a computed matrix": lambda: Of(lambda x: F.linear(x[0], torch.tanh(x[0, :1].T @ x[0, :1]))),
}
QUICK = ("grouped attention", "mean over tokens", "rows of all tokens", "lengths joined")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ALONG]
)
def test_along_a_dynamic_length(name: str) -> None:
    model = shaken(ALONG[name]())
    compiled = tw.compile(
        model, example_inputs=(torch.randn(2, 5, 16),), dynamic_shapes=({0: B, 1: S},), recipe="f32"
    )
    for batch, length in SIZES:
        x = torch.randn(batch, length, 16)
        with torch.no_grad():
            want = model(x)
        got = compiled(x)
        assert isinstance(got, torch.Tensor) and got.shape == want.shape
        assert float((got - want).abs().max()) <= 1e-5 * float(want.abs().max()), (batch, length)


def test_rows_are_ordered_along_a_dynamic_length() -> None:
    model = Of(lambda x: (x.topk(2, -1)[0], *x.sort(dim=-1, stable=True), x.median(-1)[0], x.cumprod(-1)))
    sizes = ({0: B, 1: S},)
    compiled = tw.compile(model, example_inputs=(torch.randn(2, 8),), dynamic_shapes=sizes, recipe="f32")
    for size in SIZES:
        x = torch.randn(size).round(decimals=1)  # some are equal
        for got, want in zip(compiled(x), model(x), strict=True):
            torch.testing.assert_close(got, want)


def test_an_op_without_a_kernel_names_its_line_or_module() -> None:
    sizes = ({2: Dim("S", min=8, max=40)},)
    with pytest.raises(UnsupportedError, match=r"  conv x1: .* \(module 0\)\n"):
        model: torch.nn.Module = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 3, stride=2))
        tw.compile(model, example_inputs=(torch.randn(1, 3, 9),), dynamic_shapes=sizes, recipe="f32")
    with pytest.raises(UnsupportedError, match=r"  max_pool x1: .* \(test_plain_lengths.py:\d+\)\n"):
        model = Of(lambda x: F.max_pool2d(x, 2))
        image = torch.randn(1, 3, 10, 9)
        tw.compile(model, example_inputs=(image,), dynamic_shapes=sizes, recipe="f32")


def test_names_that_kernels_use_themselves() -> None:
    """A size called M is another one than the rows of a contraction."""
    model = shaken(torch.nn.Linear(16, 4))
    shapes = ({0: Dim("M", min=1, max=8), 1: Dim("Q", min=2, max=48)},)
    compiled = tw.compile(model, example_inputs=(torch.randn(2, 5, 16),), dynamic_shapes=shapes, recipe="f32")
    x = torch.randn(3, 7, 16)
    assert torch.allclose(compiled(x), model(x), atol=1e-5)  # type: ignore[arg-type]
