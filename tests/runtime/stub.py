"""A stand-in model for runtime tests: a step over a real KV store with kernels written in C.

Its next token is a sum over the whole history, so a lost, swapped or stale position shows in every later
token:
    next = (sum over positions p of (p + 1) * id[p]) mod 256, and logits[v] = -|v - next|.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from tilewright import runtime
from tilewright.artifact.contents import Contents
from tilewright.artifact.writer import write_artifact
from tilewright.backends.base import Binary
from tilewright.backends.cpp.plan import library_source
from tilewright.backends.storage import PlacedWeight
from tilewright.ir.affine import Affine
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.encodings import dense  # noqa: F401  (registers f32)
from tilewright.ir.graph.core import Inline, State, Value, Weight
from tilewright.ir.plan.core import Call, Plan, PlanBuffer, Program
from tilewright.ir.plan.step import SLICE
from tilewright.ir.tile.core import At, Buffer, GridAxis, Kernel, Let, Span, Store, TileType
from tilewright.ir.types import SymbolRange, symbol, tensor
from tilewright.passes.record import Record, Stage

#: the context limit is less than the one slice that a cache has room for
VOCAB, CONTEXT, TOKENS = 260, 100, 16
SOURCE = """
#include <math.h>
static inline float* cell(float* k, int64_t slot, int64_t p, int d) {  // keys: 16 adjacent positions
  return k + slot * 256 * 2 + p / 16 * 32 + d * 16 + p % 16;
}
static void k_append(void* const* P, const int64_t* D, int64_t tid, int64_t nt) {
  const int32_t *ids = (const int32_t*)P[0], *pos = (const int32_t*)P[1], *seq = (const int32_t*)P[2];
  for (int64_t t = tid; t < D[0]; t += nt)
    *cell((float*)P[4], seq[t], pos[t], 0) = ((const float*)P[3])[ids[t]];
}
static void k_sum(void* const* P, const int64_t* D, int64_t tid, int64_t nt) {
  const int32_t *pos = (const int32_t*)P[0], *seq = (const int32_t*)P[1];
  for (int64_t t = tid; t < D[0]; t += nt) {
    double s = 0;
    for (int p = 0; p <= pos[t]; p++) s += (p + 1.0) * *cell((float*)P[2], seq[t], p, 0);
    ((float*)P[3])[t] = (float)fmod(s, 256);
  }
}
static void k_head(void* const* P, const int64_t* D, int64_t tid, int64_t nt) {
  const int32_t* rows = (const int32_t*)P[1];
  for (int64_t r = tid; r < D[1]; r += nt)
    for (int v = 0; v < 260; v++) ((float*)P[2])[r * 260 + v] = -fabsf(v - ((const float*)P[0])[rows[r]]);
}
"""


def kernel(name: str, params: Sequence[tuple[str, str, tuple[object, ...]]], grid: str, out: str) -> Kernel:
    """A kernel record whose body names what it writes; the C text above is what runs."""
    buffers = tuple(Buffer(n, t, tuple(Affine.of(d) for d in dims)) for n, t, dims in params)  # type: ignore[arg-type]
    one = TileType("f32", (1,))
    rank = len(next(b.dims for b in buffers if b.name == out))
    index = (*[At(Affine.of(0))] * (rank - 1), Span(Affine.of(0), 1))
    body = (Let("c", "const", (), one, (("value", 0.0),)), Store(out, index, "c"))
    return Kernel(name, buffers, (GridAxis("g", Affine.of(grid), 1),), (), body)


def stub_program() -> Program:
    T, R = symbol("T"), symbol("R")
    kv = State("kv.0", 1, 2, 2, parse_encoding("f32(layout=keys)"), parse_encoding("f32"), SLICE)
    cache_dims = ("slots", 1, SLICE, 2)
    kernels = (
        kernel(
            "append",
            [
                ("ids", "i32", ("T",)),
                ("pos", "i32", ("T",)),
                ("seq", "i32", ("T",)),
                ("w", "f32", (VOCAB,)),
                ("k", "f32", cache_dims),
            ],
            "T",
            "k",
        ),
        kernel(
            "sum",
            [("pos", "i32", ("T",)), ("seq", "i32", ("T",)), ("k", "f32", cache_dims), ("h", "f32", ("T",))],
            "T",
            "h",
        ),
        kernel("head", [("h", "f32", ("T",)), ("rows", "i32", ("R",)), ("y", "f32", ("R", VOCAB))], "R", "y"),
    )
    both = (("T", T), ("slots", symbol("slots")))
    plan = Plan(
        "step",
        (Value("ids", tensor("i32", "T")), Value("pos", tensor("i32", "T")), Value("seq", tensor("i32", "T")),
         Value("blocks", tensor("i32", "NB", 4)), Value("rows", tensor("i32", "R"))),
        (("logits", "%y"),),
        (PlanBuffer("h", tensor("f32", T), 4 * TOKENS, 0), PlanBuffer("y", tensor("f32", R, VOCAB),
        4 * VOCAB * TOKENS, 64)),
        (Call("append", ("%ids", "%pos", "%seq", "@table", "@kv.0.k"), both, source="model.py:1"),
         Call("sum", ("%pos", "%seq", "@kv.0.k", "%h"), both),
         Call("head", ("%h", "%rows", "%y"), (("T", T), ("R", R)))),
        64 + 4 * VOCAB * TOKENS,
    )  # fmt: skip
    symbols = (
        ("T", SymbolRange(1, TOKENS)),
        ("R", SymbolRange(0, TOKENS)),
        ("NB", SymbolRange(1, TOKENS)),
        ("Q", SymbolRange(1, 8)),
    )
    weight = Weight("table", tensor("f32", VOCAB), Inline("f32", (VOCAB,), table()))
    return Program(
        kernels, (plan,), (weight,), (kv,), symbols, (("vocab", VOCAB), ("context", CONTEXT), ("eos", (258,)))
    )


def table() -> bytes:
    return np.arange(VOCAB, dtype=np.float32).tobytes()


def expected_next(ids: Sequence[int]) -> int:
    return sum((p + 1) * i for p, i in enumerate(ids)) % 256


def expected_logits(ids: Sequence[int]) -> np.ndarray:
    rows = [-np.abs(np.arange(VOCAB) - expected_next(ids[: n + 1])) for n in range(len(ids))]
    return np.asarray(rows, np.float32)


def build(source: str, out: Path) -> Path:
    native = Path(str(runtime.__file__)).parent / "native"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [
        "g++",
        "-O1",
        "-std=c++17",
        "-pthread",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{native}",
        "-x",
        "c++",
        "-",
        "-o",
        str(out),
    ]
    subprocess.run(command, input=source, text=True, check=True)
    return out


def byte_tokenizer() -> str:
    """One token a byte, so that most characters span several tokens; 256 to 259 are special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = {
        chr(b): b for b in (*range(33, 127), *range(161, 173), *range(174, 256))
    }  # the GPT-2 byte alphabet
    spare = iter(sorted(set(alphabet) - set(plain)))
    by_byte = {b: next((c for c, n in plain.items() if n == b), None) or next(spare) for b in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab={c: b for b, c in by_byte.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(f"<|{n}|>", special=True) for n in ("a", "b", "eos", "d")])
    return str(tokenizer.to_str())


def model_dir(root: Path) -> Path:
    if (root / "generation_config.json").exists():
        return root
    root.mkdir(parents=True, exist_ok=True)
    (root / "tokenizer.json").write_text(byte_tokenizer())
    template = (
        "{% for m in messages %}<|a|>{{ m.role }}: {{ m.content }}<|b|>{% endfor %}{% if "
        "add_generation_prompt %}<|a|>{% endif %}"
    )
    (root / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": template, "eos_token": "<|eos|>"})
    )
    (root / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 259]}))
    return root


def weight_bytes(place: PlacedWeight) -> Iterable[bytes]:
    data = table()
    yield data[:100]
    yield data[100:]


@cache
def _level(root: Path) -> Binary:
    source = library_source(SOURCE, stub_program(), "baseline")
    library = root / "stub.so"
    return Binary("baseline", (), library if library.exists() else build(source, library), source)


def stub_contents(cache_dir: Path) -> Contents:
    """Everything of the artifact but the weights; the library is built once a cache folder."""
    return Contents(
        Record((Stage("plan", stub_program()),)),
        (_level(cache_dir),),
        {"name": "stub"},
        model_dir(cache_dir / "model"),
    )


def write_stub(path: Path, cache_dir: Path) -> Path:
    """The stub as an artifact at `path`."""
    write_artifact(path, stub_contents(cache_dir), weight_bytes)
    return path
