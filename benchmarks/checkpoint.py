"""Random-weight Llama checkpoints of any size, written tensor by tensor: no model is ever held.

In: the name of a shape. Out: a checkpoint directory (config and sharded bf16 safetensors, no tokenizer).
Independent of compilers. Usage: `python benchmarks/checkpoint.py 160m|1b|7b DIR [--sparse]`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: bytes of a shard file, about
SHARD = 1 << 30
#: random numbers that all tensors are cut from, at random places: drawing billions would take minutes and
#: change no speed
POOL = 1 << 22


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int = 32000
    positions: int = 8192

    def config(self) -> dict[str, object]:
        """What transformers reads from config.json."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
            "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.mlp, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab, "max_position_embeddings": self.positions, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor's name and shape, in the order of the files."""
        h, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab, h)
        for n in range(self.layers):
            at = f"model.layers.{n}."
            yield at + "input_layernorm.weight", (h,)
            yield at + "self_attn.q_proj.weight", (q, h)
            yield at + "self_attn.k_proj.weight", (kv, h)
            yield at + "self_attn.v_proj.weight", (kv, h)
            yield at + "self_attn.o_proj.weight", (h, q)
            yield at + "post_attention_layernorm.weight", (h,)
            yield at + "mlp.gate_proj.weight", (self.mlp, h)
            yield at + "mlp.up_proj.weight", (self.mlp, h)
            yield at + "mlp.down_proj.weight", (h, self.mlp)
        yield "model.norm.weight", (h,)
        yield "lm_head.weight", (self.vocab, h)

    @property
    def parameters(self) -> int:
        return sum(math.prod(s) for _, s in self.tensors())

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest tensor of the checkpoint."""
        return max(2 * math.prod(s) for _, s in self.tensors())


SHAPES = {
    "160m": Shape(768, 2048, 12, 12, 4, 64),
    "1b": Shape(2048, 5632, 22, 32, 4, 64),
    "7b": Shape(4096, 11008, 32, 32, 32, 128),
}


def write_checkpoint(shape: Shape, folder: Path, sparse: bool = False) -> Path:
    """The checkpoint directory, made if it does not exist. `sparse`: all weights zero, in files that take no
    room on the disk.
    """
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    pool = _pool()
    shards = list(_shards(shape))
    places: dict[str, str] = {}
    for n, shard in enumerate(shards):
        name = f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / name, shard, None if sparse else pool, n)
        places |= {tensor: name for tensor, _ in shard}
    index = {"metadata": {"total_size": 2 * shape.parameters}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (folder / "config.json").write_text(
        json.dumps(shape.config(), indent=1)
    )  # last: it says that the folder is whole
    return folder


def _pool() -> NDArray[np.uint16]:
    """Normal numbers of deviation 0.02, as bf16 bits."""
    values = np.random.default_rng(0).standard_normal(POOL, np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _shards(shape: Shape) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    shard: list[tuple[str, tuple[int, ...]]] = []
    size = 0
    for name, dims in shape.tensors():
        if shard and size + 2 * math.prod(dims) > SHARD:
            yield shard
            shard, size = [], 0
        shard.append((name, dims))
        size += 2 * math.prod(dims)
    yield shard


def _write_shard(
    path: Path, tensors: list[tuple[str, tuple[int, ...]]], pool: NDArray[np.uint16] | None, seed: int
) -> None:
    header: dict[str, object] = {}
    at = 0
    for name, dims in tensors:
        size = 2 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        if pool is None:
            f.truncate(8 + len(text) + at)
            return
        for _, dims in tensors:
            for piece in _values(dims, pool, rng):
                f.write(piece.data)


def _values(
    dims: tuple[int, ...], pool: NDArray[np.uint16], rng: np.random.Generator
) -> Iterator[NDArray[np.uint16]]:
    """A tensor in pieces; vectors are norms, and those are ones."""
    left = math.prod(dims)
    if len(dims) == 1:
        yield np.full(left, 0x3F80, np.uint16)
        return
    while left:
        start = int(rng.integers(0, POOL // 2))
        piece = pool[start : start + min(left, POOL - start)]
        left -= len(piece)
        yield piece


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random-weight Llama checkpoint.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--sparse", action="store_true", help="zeros in sparse files instead of random numbers"
    )
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    write_checkpoint(shape, args.folder, args.sparse)
    print(
        f"{args.folder}: {shape.parameters:,} parameters, largest tensor {shape.largest_bytes / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
