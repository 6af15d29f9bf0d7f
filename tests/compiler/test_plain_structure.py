"""Inputs and results of plain modules keep their structure, before and after saving."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers.modeling_outputs import BaseModelOutput

import tilewright as tw
from tilewright.cli.inspect import Inspected, report
from tilewright.ir.errors import UnsupportedError
from tilewright.runtime.errors import ArtifactError, SessionError
from tilewright.runtime.structure import Node, parse

Point = namedtuple("Point", "x y")


@dataclass
class Boxed:
    """A container of a class that only this process knows."""

    inside: torch.Tensor
    size: int


pytree.register_dataclass(Boxed)


def assert_same(got: Any, want: Any) -> None:
    """Equal leaves in equal containers; NumPy arrays stand for tensors."""
    if isinstance(want, torch.Tensor):
        assert tuple(got.shape) == tuple(want.shape)
        np.testing.assert_allclose(np.asarray(got), want.detach().numpy(), rtol=0, atol=1e-5)
        return
    assert type(got).__name__ == type(want).__name__
    if isinstance(want, dict):
        assert list(got) == list(want)
        got, want = list(got.values()), list(want.values())
    if isinstance(want, tuple | list):
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            assert_same(g, w)
    else:
        assert got == want


def test_constants_without_axes() -> None:
    """`scale` is a buffer of rank 0, copied and read; the filler of the mask is one that tracing made."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor(3.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x > 0, x * self.scale.clone(), torch.tensor(-1e4, dtype=x.dtype)).sum()

    x = torch.randn(3, 4)
    got = tw.compile(Scaled(), example_inputs=(x,), recipe="f32")(x)
    assert isinstance(got, torch.Tensor) and got.shape == ()
    torch.testing.assert_close(got, Scaled()(x))


class Everything(nn.Module):
    """Every container and constant that results can hold, around one sum, a size, an input and a
    parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(
        self, x: torch.Tensor, pair: dict[str, Any], *rest: Any, scale: float = 2.0, options: Any = None
    ) -> Any:
        y = (x + pair["p"]) * scale + options[0] + options[1][0]
        return {
            "twice": [y, (y, None)], "number": 3, "text": "s", 7: float("-inf"),
            "point": Point(y.sum(), x.shape[0]),
            "input": x, "of rest": rest[0], "weight": self.weight, "made": torch.ones(2), "empty": [(), {}],
            "last": (y @ y[0],),
        }  # fmt: skip


def test_structures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Everything().eval()
    args = (torch.randn(3, 4), {"p": torch.randn(4)}, torch.randn(1), "mode")
    named = {"options": (torch.tensor(0.5), [torch.randn(3, 1)]), "scale": 3.0}
    sizes = {
        "x": {0: torch.export.Dim("B", max=8)}, "pair": {"p": None}, "rest": (None, None), "scale": None,
        "options": (None, [{0: torch.export.Dim("B", max=8)}]),
    }  # fmt: skip
    program = torch.export.export(model, args, named, dynamic_shapes=sizes)
    compiled = tw.compile(program, recipe="f32")
    compiled.save(tmp_path / "m.tw")
    loaded = tw.load(tmp_path / "m.tw")
    page = report(Inspected(loaded.manifest, {}, str), False)
    assert (
        " x, pair={'p': pair_p}, rest_0, rest_1='mode', options=(options_0, [options_1_0]), scale=3.0\n"
        in page
    )
    assert " {'twice': [twice_0, (twice_0, None)], 'number': 3, 'text': 's', 7: -inf, " in page
    assert " 'point': Point(x=point_x, y=int(point_y)), " in page
    for rows in (3, 1, 8):
        args = (torch.randn(rows, 4), *args[1:])
        named = {"scale": 3.0, "options": [0.5, (torch.randn(rows, 1),)]}
        want = model(*args, **named)
        assert_same(compiled(*args, **named), want)
        assert_same(loaded(*args, **named), want)
        assert_same(
            loaded(*args, options=named["options"]), want
        )  # a number has one value: it need not be given
    fixed, names = (
        "\n  help: numbers are compiled in as constants: compile again for this value, or pass a tensor",
        "x, pair, rest_0, rest_1",
    )
    got = f"got 0 in order and {names}, scale, options, more by name"
    for wrong, message in [
        ({"pair": {"q": 1}}, "input pair: expected a dict of 'p', got a dict of 'q'"),
        ({"pair": torch.ones(4)}, "input pair: expected a dict of 'p', got Tensor"),
        ({"scale": 2.0}, f"input scale: compiled for 3.0, got 2.0{fixed}"),
        ({"scale": True}, f"input scale: compiled for 3.0, got True{fixed}"),
        ({"rest_1": None}, f"input rest_1: compiled for 'mode', got None{fixed}"),
        ({"options": (0.5, torch.ones(8, 1))}, "input options[1]: expected a list of 1, got Tensor"),
        ({"options": (0.5,)}, "input options: expected a tuple of 2, got a tuple of 1"),
        ({"options": (0.5, [torch.ones(3)])},
         "input options_1_0: expected f32[B, 1], got float32 of shape [3]"),
        ({"more": 1}, f"model: expected the inputs {names}, options, scale; {got}"),
    ]:  # fmt: skip
        inputs = dict(zip(("x", "pair", "rest_0", "rest_1"), args, strict=True)) | named | wrong
        with pytest.raises(SessionError) as e:
            loaded(**inputs)
        assert str(e.value) == message


class Own(nn.Module):
    """Containers with classes of their own, in and out."""

    def forward(self, box: Boxed, point: Point) -> Any:
        y = box.inside * box.size
        return (
            BaseModelOutput(last_hidden_state=y, hidden_states=(y, point.x)),
            Boxed(y, 2),
            OrderedDict(a=point.y),
        )


def test_classes_of_the_model(tmp_path: Path) -> None:
    """In this process results are of the module's classes; an artifact knows Python's only."""
    model, args = Own(), (Boxed(torch.randn(2), 3), Point(torch.randn(2), torch.randn(())))
    compiled = tw.compile(model, example_inputs=args, recipe="f32")
    got, want = compiled(*args), model(*args)
    assert isinstance(got, tuple)
    assert (
        isinstance(got[0], BaseModelOutput) and isinstance(got[1], Boxed) and isinstance(got[2], OrderedDict)
    )
    assert got[0].attentions is None and got[1].size == 2
    assert_same((got[0].last_hidden_state, got[0].hidden_states, got[1].inside, got[2]["a"]),
                (want[0].last_hidden_state, want[0].hidden_states, want[1].inside, want[2]["a"]))  # fmt: skip
    compiled.save(tmp_path / "m.tw")
    plain = (
        {"last_hidden_state": want[0][0], "hidden_states": want[0][1]},
        {"inside": want[1].inside, "size": 2},
        dict(want[2]),
    )
    assert_same(tw.load(tmp_path / "m.tw")({"inside": args[0].inside, "size": 3}, args[1]), plain)


class Times(nn.Module):
    def forward(self, x: torch.Tensor, n: int) -> torch.Tensor:
        return x * n


def test_a_number_that_stays_dynamic() -> None:
    with pytest.raises(UnsupportedError) as e:
        tw.compile(
            Times(),
            example_inputs=(torch.ones(2), 3),
            dynamic_shapes=(None, torch.export.Dim.DYNAMIC),
            recipe="f32",
        )
    hint = "\n  help: pass and return tensors, numbers, strings and None"
    assert str(e.value) == f"unsupported: input n is a dynamic number, which is not supported{hint}"


def test_descriptions() -> None:
    """Text of every kind reads back; anything else is a damaged artifact."""
    node = Node("dict", children=(
        ("a", Node("named", "P", children=(("x", Node("tensor", "t")), ("y", Node("int", "n"))))),
        (float("inf"), Node("list",
        children=((0, Node("value", value=1 << 80)), (1, Node("object", "Box"))))),
    ))  # fmt: skip
    assert parse(node.to_json(), "here") == node
    assert str(node) == f"{{'a': P(x=t, y=int(n)), inf: [{1 << 80}, Box()]}}"
    deep: Any = ["tensor", "x"]
    for _ in range(100):
        deep = ["list", [deep]]
    for bad in ([], ["tensor"], ["tensor", 3], ["value", {}], ["list", 3], ["dict", [["a"]]],
    ["named", "a b", []],
                ["named", "P", [["x y", ["value", 1]]]], ["int", ["int", "3"]], ["value", ["float", "1e5()"]],
                deep):  # fmt: skip
        with pytest.raises(ArtifactError, match="here: not a structure: "):
            parse(bad, "here")
