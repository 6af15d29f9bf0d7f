"""A product of factors beside an encoding: text, values in NumPy, the three weights of a layer, the layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tests.passes.test_four_values as forms
import tilewright.ir.encodings  # noqa: F401  registers the built-in encodings
from tilewright.ir.encoding import EncodingError
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Module, Stored
from tilewright.ir.text.graph_parser import parse_module
from tilewright.ir.text.graph_printer import print_module
from tilewright.ir.types import tensor
from tilewright.ir.weights.low_rank import factors
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.driver import run_passes

N, K = 48, 96


def with_directions(seed: int = 0) -> NDArray[np.float32]:
    """Noise and three large directions."""
    rng = np.random.default_rng(seed)
    thin = rng.standard_normal((N, 3)) @ rng.standard_normal((3, K))
    return (rng.standard_normal((N, K)) + 3 * thin).astype(np.float32)


def rms(x: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(x, dtype=np.float64).mean()))


@pytest.mark.parametrize(
    "text", ["int4(group=32) + lowrank(4)", "bf16 + lowrank(3)", "q4_0 + sparse(1%) + lowrank(2)"]
)
def test_text_and_values(text: str) -> None:
    e, w = parse_encoding(text), with_directions()
    assert str(e) == text and parse_encoding(str(e)) == e
    assert e.factors is not None
    streams = e.encode(w)
    rank = e.factors.rank
    assert streams["left"].shape == (N, rank) and streams["right"].shape == (rank, K)
    base = parse_encoding(text.rpartition(" + ")[0])
    rest = {name: a for name, a in streams.items() if name not in ("left", "right")}
    np.testing.assert_array_equal(e.decode(streams), base.decode(rest) + streams["left"] @ streams["right"])
    # bf16 factors: left in pairs of columns, right in panels of 16 rows
    assert e.nbytes((N, K)) == base.nbytes((N, K)) + 2 * (N * (rank + rank % 2) + 16 * K)


def test_large_directions_are_kept() -> None:
    """The codes then hold the noise alone, whose scales are small."""
    w = with_directions()
    errors = [
        rms(e.decode(e.encode(w)) - w)
        for e in map(parse_encoding, ("int4(group=32)", "int4(group=32) + lowrank(3)"))
    ]
    assert errors[1] < errors[0] / 3


def test_factors_are_those_of_the_decomposition() -> None:
    w = with_directions()
    left, right = factors(w, 3)
    u, s, vt = np.linalg.svd(w)
    best = (u[:, :3] * s[:3]) @ vt[:3]
    assert rms(left @ right - best) < 0.005 * rms(best)


# ------------------------------------------------------------------ as a layer
def layer(op: str = "linear") -> Module:
    b = GraphBuilder("forward")
    b.symbol("M", 1, 16)
    w = b.weight("w", tensor("f32", N, K), Stored("memory", "w"))
    if op == "linear":
        x, bias = (
            b.add_input("x", tensor("f32", "M", K)),
            b.weight("b", tensor("f32", N), Stored("memory", "b")),
        )
        b.output(b.op("silu", b.op("linear", x, w, bias)), "y")
    else:
        b.output(b.op("gather", w, b.add_input("i", tensor("i32", "M")), axis=0), "y")
    return b.module()


def encode(weights: str, activations: str = "f32", rules: str = '[["b", "f32"]]') -> str:
    return (
        f'canonicalize, encode-weights{{weights="{weights}", rules={rules}}}, '
        f'quantize-activations{{activations="{activations}"}}, canonicalize, fuse'
    )


@pytest.mark.parametrize(("activations", "rows"), [("f32", 1), ("int8(token)", 7)])
def test_a_layer_four_ways(activations: str, rows: int) -> None:
    fused, program = forms.lowered(layer(), encode("int4(group=32) + lowrank(4)", activations))
    assert parse_module(print_module(fused)) == fused
    stored = {w.name: str(w.type.encoding) for w in fused.weights if w.name != "b"}
    factor = "bf16(layout=panel)"
    assert stored == {"w.rest": "int4(group=32)", "w.left": factor, "w.right": factor}
    memory = {"w": with_directions(1), "b": forms.numbers(N, seed=2)}
    x, e, eager = forms.numbers(rows, K), parse_encoding("int4(group=32) + lowrank(4)"), None
    if activations == "f32":
        values = torch.from_numpy(e.decode(e.encode(memory["w"])))
        y = torch.nn.functional.linear(torch.from_numpy(x), values, torch.from_numpy(memory["b"]))
        eager = {"y": torch.nn.functional.silu(y).numpy()}
    forms.Held(fused, program, {"x": x}, eager, forms.NARROW, memory).check()


def test_the_three_weights_make_the_whole() -> None:
    module = run_passes(layer(), encode("int8(channel) + lowrank(4)")).module
    w = with_directions()
    store = WeightStore(memory={"w": w, "b": np.zeros(N, np.float32)})
    rest, left, right = (store.load(module.weight_map()[f"w.{p}"]) for p in ("rest", "left", "right"))
    np.testing.assert_allclose(rest + left @ right, w, atol=1e-5)
    assert [store.shape(module.weight_map()[f"w.{p}"].source) for p in ("left", "right")] == [(N, 4), (4, K)]


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int4 + lowrank", "lowrank: expected a rank, as in lowrank(16), got {}"),
        ("int4 + lowrank(0)", "lowrank: expected a rank, as in lowrank(16), got {'0': 0}"),
        (
            "int4 + lowrank(2) + lowrank(2)",
            "int4(group=32) + lowrank(2) + lowrank(2): there is a low-rank part already",
        ),
    ],
)
def test_what_does_not_compose(text: str, words: str) -> None:
    with pytest.raises(EncodingError) as caught:
        parse_encoding(text)
    assert str(caught.value) == words


def test_sides_stand_beside_the_codes_in_any_order() -> None:
    e = parse_encoding("int4 + lowrank(2) + sparse(1%)")
    assert str(e) == "int4(group=32) + sparse(1%) + lowrank(2)" and parse_encoding(str(e)) == e


def test_other_readers_and_solvers_are_refused() -> None:
    for module, passes, words in (
        (
            layer("gather"),
            encode("bf16", rules='[["w", "bf16 + lowrank(2)"]]'),
            "gather reads it, but only weights of linear layers can have a low-rank part",
        ),
        (layer(), encode("hqq(int4(group=32) + lowrank(2))"), "cannot find a low-rank part"),
        (
            layer(),
            encode("int4(group=32) + lowrank(64)"),
            "expected one matrix of at least 64 rows and columns",
        ),
    ):
        with pytest.raises(RefusedError, match=words):
            run_passes(module, passes)


def test_it_has_no_streams_of_one_buffer() -> None:
    e = parse_encoding("int4(group=32) + lowrank(2)")
    with pytest.raises(EncodingError, match="is stored as three weights: run encode-weights"):
        e.record((N, K))
    assert e.ahead_of_time == "lowrank(2) is computed from all values of a matrix"


def test_an_embedding_that_is_also_the_head_is_stored_without_it() -> None:
    b = GraphBuilder("forward")
    b.symbol("T", 1, 16)
    ids = b.add_input("ids", tensor("i32", "T"))
    table, w = (b.weight(n, tensor("f32", 64, 64), Stored("memory", n)) for n in ("table", "w"))
    x = b.op("linear", b.op("gather", table, ids, axis=0), w)
    b.output(b.op("linear", x, table), "logits")
    run = run_passes(b.module(), encode("int4(group=32) + lowrank(4)", rules="[]"))
    stored = {w.name: str(w.type.encoding) for w in run.module.weights}
    assert stored["table"] == "int4(group=32)" and {"w.rest", "w.left", "w.right"} < set(stored)
    assert any("an embedding reads it too: stored as int4(group=32)" in str(n) for n in run.notes)
    asked = encode("int4(group=32)", rules='[["table", "int4(group=32) + lowrank(4)"]]')
    with pytest.raises(RefusedError, match="gather reads it"):
        run_passes(b.module(), asked)


def test_factors_of_the_largest_numbers_and_of_none() -> None:
    w = np.random.default_rng(2).standard_normal((48, 32)).astype(np.float32)
    for size in (2.0**120, 2.0**-100):
        for small, large in zip(factors(w, 4), factors(w * np.float32(size), 4), strict=True):
            np.testing.assert_allclose(large, small * np.sqrt(size), rtol=1e-2, atol=1e-2 * np.sqrt(size))
    w[3, 5] = np.nan
    assert not any(f.any() for f in factors(w, 4))
