"""The graph interpreter, lazy weights and random inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from tests.ir.graph_cases import graphs, mlp, step, values
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Apply, Module, Stored, Weight
from tilewright.ir.graph.random_values import RandomWeights, Step, random_inputs
from tilewright.ir.interp.graph import Interpreter, run_graph
from tilewright.ir.interp.kv_cache import InterpStates
from tilewright.ir.text.graph_parser import parse_module
from tilewright.ir.text.graph_printer import print_module
from tilewright.ir.types import TensorType, tensor
from tilewright.ir.weights.sources import WeightStore


@settings(deadline=None, max_examples=50)
@given(graphs())
def test_the_same_inputs_give_the_same_bits(module: Module) -> None:
    inputs = random_inputs(module, "fuzz")
    weights = RandomWeights().learn(module)
    once = run_graph(module, "fuzz", inputs, weights)
    again = run_graph(parse_module(print_module(module)), "fuzz", inputs, RandomWeights().learn(module))
    assert all(once[n].tobytes() == again[n].tobytes() for n in ("y0", "y1"))


def test_a_layer_by_hand() -> None:
    gate, up, down = values((16, 32), 1), values((16, 32), 2), values((32, 16), 3)
    x = values((3, 32), 4)
    memory = {"gate": gate, "up": up, "down": down}
    module = parse_module(print_module(mlp()).replace('"model.safetensors"', '"memory"'))
    y = run_graph(module, "forward", {"x": x}, WeightStore(memory=memory))["y"]
    g = x @ gate.T
    bits = down.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
    want = (g / (1 + np.exp(-g)) * (x @ up.T)) @ rounded.T + x
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


def test_quantized_weights_carry_their_error() -> None:
    b = GraphBuilder("forward")
    x = b.add_input("x", tensor("f32", 4, 64))
    int4 = parse_encoding("int4(group=32)")
    w = b.weight("w", tensor("f32", 32, 64, encoding=int4), Stored("memory", "w"))
    b.output(b.op("linear", b.op("encode", x, encoding="int8(token)"), w), "y")
    w_values, x_values = values((32, 64), 1), values((4, 64), 2)
    y = run_graph(b.module(), "forward", {"x": x_values}, WeightStore(memory={"w": w_values}))["y"]
    token = parse_encoding("int8(token)")
    coded = token.decode(token.encode(x_values)) @ int4.decode(int4.encode(w_values)).T
    np.testing.assert_allclose(y, coded, rtol=1e-5, atol=1e-4)
    assert np.abs(y - x_values @ w_values.T).max() > 0.05


def test_a_step_in_pieces_is_the_whole_step() -> None:
    """Prefill at once, in uneven chunks with another sequence between, and token by token."""
    module, weights = step(), RandomWeights().learn(step())
    ids = np.random.default_rng(0).integers(0, 50, 9).astype(np.int32)

    def feed(states: InterpStates, tokens: np.ndarray, s: Step) -> np.ndarray:  # type: ignore[type-arg]
        inputs = {
            "ids": tokens,
            "pos": s.pos,
            "seq": s.seq,
            "blocks": s.blocks(),
            "rows": np.arange(len(tokens), dtype=np.int32),
        }
        return Interpreter(module, weights).run("step", inputs, states)["logits"]

    whole = feed(InterpStates(module.states), ids, Step((9,), (0,)))
    single = InterpStates(module.states)
    np.testing.assert_array_equal(
        whole, np.concatenate([feed(single, ids[n : n + 1], Step((1,), (n,))) for n in range(9)])
    )
    mixed = InterpStates(module.states)
    a = feed(mixed, ids[:4], Step((4,), (0,)))
    b = feed(mixed, np.concatenate([ids[4:], ids[:3]]), Step((5, 3), (4, 0)))
    np.testing.assert_array_equal(whole, np.concatenate([a, b[:5]]))
    np.testing.assert_array_equal(whole[:3], b[5:])


def test_the_work_list_covers_every_token() -> None:
    s = Step((9, 1, 3), (0, 40, 7))
    assert s.blocks(4).tolist() == [[0, 4, 0, 0], [4, 4, 0, 4], [8, 1, 0, 8], [9, 1, 1, 40], [10, 3, 2, 7]]
    assert s.last_rows.tolist() == [8, 9, 12]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "graph @forward: refused: input 'x' is missing\n  help: inputs: x"),
        ({"x": values((2, 31))}, ("graph @forward: refused: input 'x' has 31 where 32 is 32\n  help: "
                                 "symbols: {'B': 2}")),
        ({"x": values((65, 32))}, ("graph @forward: refused: B is 65, outside 1..64\n  help: pass inputs of "
                                  "other sizes")),
        ({"x": values((2,))}, ("graph @forward: refused: input 'x' has shape [2]\n  help: expected f32[B, "
                              "32]")),
        ({"x": np.zeros((2, 32), bool)},
         "graph @forward: refused: input 'x' is bool, expected values of f32"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(inputs: dict[str, np.ndarray], message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(RefusedError) as e:
        run_graph(mlp(), "forward", inputs, RandomWeights())
    assert str(e.value) == message


def test_an_index_outside_names_its_op() -> None:
    b = GraphBuilder("forward")
    table, ids = b.add_input("table", tensor("f32", 4, 2)), b.add_input("ids", tensor("i32", 3))
    b.output(b.op("gather", table, ids, axis=0), "y")
    with pytest.raises(
        RefusedError, match=r"gather: index 9 is outside 0\.\.3\n    %0 = gather %table, %ids"
    ):
        run_graph(b.module(), "forward", {"table": values((4, 2)), "ids": np.array([0, 9, 1])})


# ------------------------------------------------------------------ weights
def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header, blob = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [len(blob), len(blob) + len(data)],
        }
        blob += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + blob)


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    b = (np.arange(6, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    tensors = {
        "a": ("F32", (2, 3), a.tobytes()),
        "b": ("BF16", (2, 3), b.tobytes()),
        "f8": ("F8_E4M3", (2,), b"00"),
    }
    write_safetensors(tmp_path / "m.safetensors", tensors)
    return WeightStore(tmp_path)


A, B = Stored("m.safetensors", "a"), Stored("m.safetensors", "b")


def test_weight_expressions(store: WeightStore) -> None:
    def value(e: object, *shape: int) -> list[object]:
        return store.load(Weight("w", TensorType("f32", shape), e)).tolist()  # type: ignore[arg-type]

    assert value(A, 2, 3) == value(B, 2, 3) == [[0, 1, 2], [3, 4, 5]]
    assert value(Apply("concat", (A, B), (("axis", 0),)), 4, 3)[2:] == [[0, 1, 2], [3, 4, 5]]
    assert value(Apply("slice", (B,), (("axis", 1), ("start", 1), ("stop", 3))), 2, 2) == [[1, 2], [4, 5]]
    assert value(Apply("transpose", (A,), (("perm", (1, 0)),)), 3, 2) == [[0, 3], [1, 4], [2, 5]]
    assert value(Apply("add", (A, Apply("fill", (), (("shape", (2, 3)), ("value", 1.0)))), ()), 2, 3)[0] == [
        1,
        2,
        3,
    ]
    low = Apply("slice", (A,), (("axis", 0), ("start", 0), ("stop", 1)))  # A [1, 3]
    high = Apply("slice", (A,), (("axis", 1), ("start", 1), ("stop", 2)))  # B [2, 1]
    for factors in ((low, high), (high, low)):
        assert value(Apply("lora", (A, *factors), (("scale", 2.0),)), 2, 3) == [[0, 3, 6], [3, 12, 21]]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            Stored("m.safetensors", "no"),
            (
                "weight @w: {dir}/m.safetensors: refused: no tensor 'no'\n  help: the checkpoint does not "
                "match the model's config"
            ),
        ),
        (
            A,
            (
                "weight @w (m.safetensors: a): refused: has shape [2, 3], expected [3, 2]\n"
                "  help: the checkpoint does not match the model's config"
            ),
        ),
        (
            Stored("gone.safetensors", "a"),
            (
                "weight @w: {dir}/gone.safetensors: refused: cannot read it: No such file or directory\n"
                "  help: check the checkpoint directory"
            ),
        ),
        (
            Stored("../m.safetensors", "a"),
            "weight @w: {dir}: refused: file '../m.safetensors' is outside the directory",
        ),
        (
            Stored("/etc/passwd", "a"),
            "weight @w: {dir}: refused: file '/etc/passwd' is outside the directory",
        ),
        (
            Stored("m.safetensors", "f8"),
            (
                "weight @w: {dir}/m.safetensors: refused: tensor 'f8' has dtype F8_E4M3\n"
                "  help: known: F64, F32, F16, BF16, I64, I32, U32, I16, U16, I8, U8, BOOL"
            ),
        ),
        (
            Apply("reshape", (A,), (("shape", (5,)),)),
            (
                "weight @w: reshape{{shape=[5]}}: refused: cannot apply to [2, 3]: cannot reshape array of "
                "size 6 into shape (5,)"
            ),
        ),
        (
            Stored("memory", "a"),
            (
                "weight @w: refused: no tensor 'a' in memory\n"
                "  help: pass the module's tensors to the weight store"
            ),
        ),
        (
            Stored("adapter:a.safetensors", "a"),
            (
                "weight @w: refused: needs the file 'a.safetensors', but no adapter directory is given\n  "
                "help: pass the directory"
            ),
        ),
    ],
)
def test_weights_that_do_not_fit(store: WeightStore, source: object, message: str) -> None:
    with pytest.raises(RefusedError) as e:
        store.load(Weight("w", TensorType("f32", (3, 2)), source))  # type: ignore[arg-type]
    assert str(e.value) == message.format(dir=store.directory)


@pytest.mark.parametrize("size", [0, 4, 8, 20, 60, 200])
def test_cut_files_are_refused(store: WeightStore, size: int) -> None:
    assert store.directory is not None
    path = store.directory / "m.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(RefusedError, match="damaged"):
        store.load(Weight("w", TensorType("f32", (2, 3)), A))
