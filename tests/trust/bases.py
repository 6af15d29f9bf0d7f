"""Small programs to mutate: a module with a dynamic batch, one of odd parts, a one-layer language model."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf
from torch.export import Dim

import tilewright as tw


class Mixed(torch.nn.Module):
    """A table looked up, a concatenation, a reduction, and a product, under narrow weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(40, 16)
        self.norm = torch.nn.LayerNorm(24)
        self.out = torch.nn.Linear(24, 7)

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.cat([self.table(ids), x], 1)
        return self.out(self.norm(rows)), rows.softmax(1).amax(1, keepdim=True)


def write(work: Path) -> None:
    """plain.tw, mixed.tw and llama.tw in the folder. Libraries for the least level: they are never run."""
    torch.manual_seed(0)
    batch = Dim("batch", min=1, max=64)
    plain = torch.nn.Sequential(torch.nn.Linear(20, 48), torch.nn.ReLU(), torch.nn.Linear(48, 5)).eval()
    shapes: object = ({0: batch},)
    tw.compile(
        plain, example_inputs=(torch.randn(3, 20),), dynamic_shapes=shapes, recipe="f32", target="baseline"
    ).save(work / "plain.tw")
    inputs, rows = (torch.randint(40, (3,)), torch.randn(3, 8)), Dim("n", min=1, max=32)
    shapes = ({0: rows}, {0: rows})
    tw.compile(
        Mixed().eval(),
        example_inputs=inputs,
        dynamic_shapes=shapes,
        recipe="int8",
        activations="int8(token)",
        target="baseline",
    ).save(work / "mixed.tw")
    _model(work)
    tw.compile(work / "model", recipe="f32", kv="f32", target="baseline").save(work / "llama.tw")


def write_selecting(work: Path) -> None:
    """selecting.tw: the language model, whose single tokens read blocks that they choose."""
    _model(work)
    tw.compile(work / "model", recipe="f32", kv="f32", cache="quest(budget=64)", target="baseline").save(
        work / "selecting.tw"
    )


def _model(work: Path) -> None:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(work / "model")
