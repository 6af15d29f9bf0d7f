"""The importer: imported graphs, interpreted, against eager PyTorch; names, locations and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from tests.compiler.import_samples import Sample, samples
from tilewright.capture import capture_module
from tilewright.capture.importer import import_program
from tilewright.ir.errors import RefusedError, UnsupportedError
from tilewright.ir.graph.core import Module
from tilewright.ir.graph.verify import verify_module
from tilewright.ir.interp.graph import run_graph
from tilewright.ir.text.graph_parser import parse_module
from tilewright.ir.text.graph_printer import print_module
from tilewright.ir.types import SymbolRange, tensor
from tilewright.ir.weights.sources import WeightStore

Array = NDArray[Any]


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, fn: Any) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *args: Tensor) -> Any:
        return self.fn(*args)


def run(module: Module, memory: dict[str, Array], inputs: dict[str, Tensor]) -> dict[str, Array]:
    verify_module(module)
    assert parse_module(print_module(module)) == module
    results = run_graph(
        module, "forward", {k: v.numpy() for k, v in inputs.items()}, WeightStore(memory=memory)
    )
    checks: Any = dict(module.meta).get("checks", ())
    for name, *_ in checks:
        gap = float(results.pop(name))
        assert gap <= 0 if name.endswith(".beyond") else gap >= 0, name
    return results


def assert_close(got: Array, want: Tensor, tolerance: float = 1e-5) -> None:
    """Equal shapes; floats within `tolerance` of the largest, integers and bools equal."""
    expected = want.detach().float().numpy() if want.is_floating_point() else want.numpy()
    assert got.shape == expected.shape
    if not want.is_floating_point():
        np.testing.assert_array_equal(got, expected)
        return
    finite = np.isfinite(expected)
    scale = max(1.0, float(np.abs(expected[finite]).max(initial=0)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale, equal_nan=True)


def check(
    module: nn.Module, example: dict[str, Tensor], dynamic: Any, fresh: list[dict[str, Tensor]]
) -> Module:
    """Capture with the example, compare on the example and on fresh inputs of other sizes."""
    captured, memory = capture_module(module, example, dynamic)
    for inputs in (example, *fresh):
        with torch.no_grad():
            want = module(**inputs)
        got = run(captured, memory, inputs)
        leaves = dict(want.items()) if hasattr(want, "items") else {"output": want}
        assert list(got) == list(leaves)
        for name, value in leaves.items():
            assert_close(got[name], value)
    return captured


# ------------------------------------------------------------------ operator by operator
@pytest.mark.parametrize("sample", samples(), ids=str)
def test_operators(sample: Sample) -> None:
    spec = tuple(
        {0: Dim.AUTO} if sample.batch and n == 0 and a.ndim else None for n, a in enumerate(sample.args)
    )
    module = Function(sample.fn)
    captured, memory = capture_module(module, sample.args, (spec,))
    names = [v.name for v in captured.graph("forward").inputs]
    got = run(captured, memory, dict(zip(names, sample.args, strict=True)))
    want = [x for x in pytree.tree_leaves(sample.fn(*sample.args)) if x is not None]
    assert len(got) == len(want)
    for g, w in zip(got.values(), want, strict=True):
        assert_close(g, w)


class Everything(nn.Module):
    """All samples in one program, with a change in place, so that PyTorch takes it apart first."""

    def __init__(self) -> None:
        super().__init__()
        self.samples = samples()

    def forward(self, x: Tensor) -> list[Any]:
        return [s.fn(*(a + x.clone().add_(0).to(a.dtype) for a in s.args)) for s in self.samples]


def test_operators_taken_apart() -> None:
    module, x = Everything(), torch.zeros(())
    captured, memory = capture_module(module, (x,))
    got = run(captured, memory, {"x": x})
    want = [t for t in pytree.tree_leaves(module(x)) if t is not None]
    assert len(got) == len(want)
    for (name, g), w in zip(got.items(), want, strict=True):
        try:
            assert_close(g, w)
        except AssertionError as e:
            raise AssertionError(f"{module.samples[int(name.split('_')[1])]}: {e}") from e


# ------------------------------------------------------------------ models
class Mlp(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16, dtype=dtype), nn.Linear(16, 8, bias=False, dtype=dtype)
        self.norm = nn.LayerNorm(8, dtype=dtype)
        self.register_buffer("offset", torch.arange(8, dtype=dtype) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(torch.nn.functional.gelu(self.up(x)))) + self.offset


def test_mlp_of_any_batch() -> None:
    torch.manual_seed(0)
    sizes = {"x": {0: Dim("batch", min=1, max=64)}}
    m = check(Mlp(), {"x": torch.randn(3, 8)}, sizes, [{"x": torch.randn(n, 8)} for n in (1, 64)])
    assert m.symbols == (("batch", SymbolRange(1, 64)),)
    assert m.graph("forward").inputs[0].type == tensor("f32", "batch", 8)
    assert dict(m.meta)["kind"] == "plain"
    assert [op.name for op in m.graph("forward").ops] == [
        "linear",
        "gelu",
        "linear",
        "add",
        "layer_norm",
        "add",
    ]


def test_every_op_knows_its_line() -> None:
    m, _ = capture_module(Mlp(), (torch.randn(3, 8),))
    ops = {op.name: op for op in m.graph("forward").ops}
    loc = ops["layer_norm"].loc
    assert loc is not None
    line = Mlp.forward.__code__.co_firstlineno + 1
    assert (loc.file, loc.line, loc.scope) == ("test_importer.py", line, "norm")
    assert all(op.loc is not None for op in m.graph("forward").ops)


def test_half_precision_is_an_encoding() -> None:
    torch.manual_seed(0)
    module = Mlp(torch.bfloat16)
    m, memory = capture_module(module, (torch.randn(3, 8, dtype=torch.bfloat16),))
    up = m.weight_map()["up.weight"]
    assert (up.type.dtype, str(up.type.encoding)) == ("f32", "bf16")
    graph = m.graph("forward")
    assert (graph.inputs[0].type.dtype, graph.values()[graph.outputs[0][1:]].type.dtype) == ("bf16", "bf16")
    x = torch.randn(3, 8).bfloat16()
    got = run(m, memory, {"x": x.float()})["output"]
    assert_close(got, module(x), 2**-8)  # one more rounding than eager's may fall the other way


class Attention(nn.Module):
    """Written by hand: one projection, a boolean causal mask, softmax, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (t.view(b, s, 4, 4).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / 2.0
        keep = torch.ones(s, s, dtype=torch.bool).tril()
        p = scores.masked_fill(~keep, float("-inf")).softmax(-1)
        return x + self.out((p @ v).transpose(1, 2).reshape(b, s, 16))


BS = {0: Dim("B", min=1, max=8), 1: Dim("S", min=2, max=32)}


def test_hand_written_attention() -> None:
    torch.manual_seed(0)
    shapes = [{"x": torch.randn(b, s, 16)} for b, s in ((1, 2), (4, 9))]
    m = check(Attention(), {"x": torch.randn(2, 5, 16)}, {"x": BS}, shapes)
    assert [n for n, _ in m.symbols] == ["B", "S"]


class Block(nn.Module):
    """As in GPT-2: matrices stored [in, out], a fused projection, SDPA, tied embedding and head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places, self.norm = nn.Embedding(20, 16), nn.Embedding(32, 16), nn.LayerNorm(16)
        self.w, self.b = nn.Parameter(torch.randn(16, 48) / 4), nn.Parameter(torch.randn(48))
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.embed(ids) + self.places(torch.arange(ids.shape[1]))
        y = torch.addmm(self.b, self.norm(x).view(-1, 16), self.w).view(*ids.shape, 3, 4, 4)
        q, k, v = y.permute(2, 0, 3, 1, 4).unbind()
        a = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = x + a.transpose(1, 2).flatten(2)
        return {"logits": self.head(hidden), "hidden": hidden}


def test_gpt2_like_block() -> None:
    torch.manual_seed(0)
    fresh = [{"ids": torch.randint(0, 20, (b, s))} for b, s in ((1, 2), (3, 8))]
    m = check(Block(), {"ids": torch.randint(0, 20, (2, 5))}, {"ids": BS}, fresh)
    weights = m.weight_map()
    assert weights["w.T"].type == tensor("f32", 48, 16)  # transposed once, as a weight
    assert "head.weight" not in weights  # tied: one tensor under its first name
    assert m.graph("forward").inputs[0].type == tensor("i64", "B", "S")


def tiny(family: str, attention: str) -> nn.Module:
    import transformers as t

    common: dict[str, Any] = {
        "vocab_size": 50,
        "max_position_embeddings": 40,
        "attn_implementation": attention,
    }
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    if family == "distilbert":
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32}
    torch.manual_seed(0)
    return t.AutoModel.from_config(t.AutoConfig.for_model(family, **common, **sizes)).eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "family", ["bert", *(pytest.param(f, marks=pytest.mark.slow) for f in ("roberta", "distilbert"))]
)
def test_encoders(family: str, attention: str) -> None:
    def batch(b: int, s: int, short: int) -> dict[str, Tensor]:
        mask = torch.ones(b, s, dtype=torch.long)
        mask[0, short:] = 0
        return {"input_ids": torch.randint(3, 50, (b, s)), "attention_mask": mask}

    m = check(
        tiny(family, attention),
        batch(2, 7, 5),
        {"input_ids": BS, "attention_mask": BS},
        [batch(1, 4, 4), batch(3, 9, 2)],
    )
    assert m.graph("forward").results[0] == "last_hidden_state"
    assert [v.name for v in m.graph("forward").inputs] == ["input_ids", "attention_mask"]


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2)
        )
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        return self.head(y.mean((2, 3))), y


def test_convolutions_and_tuples() -> None:
    torch.manual_seed(0)
    module = Convolutions().train()
    x = torch.randn(2, 3, 8, 9)
    m, memory = capture_module(module, (x,), ({0: Dim("B", min=1, max=4)},))
    assert module.training and module.body.training
    assert m.graph("forward").results == ("output_0", "output_1")
    for got, want in zip(run(m, memory, {"x": x}).values(), module.eval()(x), strict=True):
        assert_close(got, want)


def test_an_exported_program_and_custom_operators() -> None:
    module = Mlp()
    ep = torch.export.export(module, (torch.randn(3, 8),), dynamic_shapes={"x": {0: Dim.AUTO}})
    m, memory = capture_module(ep)
    x = torch.randn(6, 8)
    assert_close(run(m, memory, {"x": x})["output"], module(x))
    own = import_program(
        ep,
        graph_name="f",
        input_names=["rows"],
        result_names=["y"],
        symbols={"T": SymbolRange(1, 8)},
        dims={str(s): "T" for s in ep.range_constraints},
        weight=lambda name, t: (tensor("f32", *t.shape), m.weight_map()[name].source),
        custom={"aten::gelu": lambda c, x: c.op("silu", x)},
        weight_name=lambda n: f"model.{n}",
        meta={"family": "mlp"},
    )
    assert [op.name for op in own.graph("f").ops][:2] == ["linear", "silu"]
    assert (
        own.graph("f").results == ("y",)
        and "model.up.weight" in own.weight_map()
        and own.meta == (("family", "mlp"),)
    )


# ------------------------------------------------------------------ errors
class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a = torch.fft.rfft(x).real
        b = torch.fft.rfft(x * 2).real
        return a + b + torch.special.i1(x)[:, :5]


def test_all_unknown_operators_are_listed_at_once() -> None:
    with pytest.raises(UnsupportedError) as e:
        capture_module(Spectrum(), (torch.randn(2, 8),))
    first = Spectrum.forward.__code__.co_firstlineno + 1
    text = str(e.value)
    assert f"aten._fft_r2c.default × 2  at test_importer.py:{first}, test_importer.py:{first + 1}" in text
    assert f"aten.special_i1.default × 1  at test_importer.py:{first + 2}" in text
    assert text.startswith("unsupported: ")
    assert text.endswith("help: rewrite these lines of the model, or register an op and an importer for them")


class Chosen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.pad(x, (1, 1), mode="reflect").sum()
        return y + x[torch.ones(4, dtype=torch.bool)].sum()


def test_a_form_without_meaning_says_what_to_do() -> None:
    with pytest.raises(UnsupportedError) as e:
        capture_module(Chosen(), (torch.randn(4, 3, 5),))
    line = Chosen.forward.__code__.co_firstlineno + 2
    advice = (
        "a boolean index, whose result size depends on the data (use torch.where, or multiply by the mask)"
    )
    assert f"aten.index.Tensor: {advice} × 1  at test_importer.py:{line}" in str(e.value)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x + self.count


def test_state_in_buffers_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="the model modifies count while it runs") as e:
        capture_module(Counter(), (torch.randn(2),))
    assert "pass it in and return it" in str(e.value)


def test_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(RefusedError, match="PyTorch cannot trace the model") as e:
        capture_module(Function(lambda x: x if x.sum() > 0 else -x), (torch.randn(2),))
    assert "no branches on tensor values" in str(e.value)
    with pytest.raises(RefusedError, match="pass example_inputs"):
        capture_module(Mlp())
    with pytest.raises(RefusedError, match="example input x has size 1 on axis 0, which is declared dynamic"):
        capture_module(Mlp(), {"x": torch.randn(1, 8)}, {"x": {0: Dim("B")}})
