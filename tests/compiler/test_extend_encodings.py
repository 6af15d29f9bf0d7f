"""The worked examples of encodings and solvers in `docs/extending.md`, each one file outside the package.

They are registered, parsed, and held four ways (eager, graph interpreter, tile interpreter, compiled).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tests.passes.test_four_values as forms
from tests.four_values import assert_agree, four_values
from tilewright.cli.common import load_plugin
from tilewright.ir.encoding import EncodingError
from tilewright.ir.encoding_registry import known_encodings, known_sides, parse_encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.interp.kv_cache import through
from tilewright.ir.solver import known_solvers, parse_stored
from tilewright.passes.incrementalize import _cache_encodings

#: how far attention over integers may be from attention over what they stand for
INTEGERS = 2e-2
EXTEND = Path(__file__).resolve().parents[2] / "examples" / "extend"


@pytest.fixture(scope="module", autouse=True)
def plugins() -> None:
    """Each file once in a process: a name is registered only once."""
    known = {*known_encodings(), *known_sides(), *known_solvers()}
    for name, file in (
        ("pow2", "power_of_two"), ("e5m2", "upper_byte"), ("mean", "row_mean"), ("trim", "trim"),
        ("ternary", "ternary"),
    ):  # fmt: skip
        if name not in known:
            load_plugin(EXTEND / f"{file}.py")


@pytest.mark.parametrize(
    "text",
    ["ternary", "pow2(token, sums=32, zero=8)", "e5m2", "int4(group=32) + mean", "q4_k + mean + sparse(1%)",
     "nf4(group=64) + sparse(1%) + mean"],
)  # fmt: skip
def test_text_bytes_and_values(text: str) -> None:
    e = parse_encoding(text)
    assert str(e) == text and parse_encoding(str(e)) == e
    x = np.random.default_rng(0).standard_normal((48, 256)).astype(np.float32)
    streams = e.encode(x)
    values, back = e.decode(streams), e.unpack(e.pack(streams, x.shape), x.shape)
    np.testing.assert_array_equal(e.decode(back), values)
    assert np.sqrt(np.square(values - x).mean()) < (0.6 if text == "ternary" else 0.15)


def test_a_mean_beside_codes_helps_rows_that_have_one() -> None:
    x = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32) + 20
    errors = [
        np.abs(through(parse_encoding(t), x) - x).max() for t in ("int4(group=32) + mean", "int4(group=32)")
    ]
    assert errors[0] < 0.3 < errors[1]


@pytest.mark.parametrize(
    ("activations", "weights"),
    [
        ("f32", "ternary"),
        ("pow2(token)", "int8(channel)"),
        ("pow2(token)", "int4(group=32)"),
        ("bf16", "int4(group=32) + mean"),
        ("int8(token)", "int4(group=32) + mean + sparse(2%)"),
        ("fp8(e4m3, group=32)", "bf16"),
        ("int4(group=32)", "int8(channel)"),
    ],
)
def test_contractions(activations: str, weights: str) -> None:
    forms.linear_case(activations, weights, 3).check()


@pytest.mark.parametrize(
    ("kv", "rope"),
    [
        ("e5m2", False),
        pytest.param("int8(token)", False, marks=pytest.mark.slow),
        ("int8(token)", True),
        pytest.param("int4(group=16)", False, marks=pytest.mark.slow),
        pytest.param("fp8(e4m3, channel)", True, marks=pytest.mark.slow),
    ],
)
def test_caches(kv: str, rope: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    c = forms.Attention(kv=kv, rope=rope)
    monkeypatch.setitem(forms.CASES, "here", c)
    case, e = forms.attention_case("here"), parse_encoding(kv)
    x = {n: torch.from_numpy(np.array(a)) for n, a in case.inputs.items()}
    step = forms.Step((13, 1, 9, 1), (0, 0, 0, 0))
    k = forms.turned(x["k"], x["cos"], x["sin"]) if rope else x["k"]
    q = forms.turned(x["q"], x["cos"], x["sin"]) if rope else x["q"]
    held = {n: torch.from_numpy(through(e, t.numpy())) for n, t in (("k", k), ("v", x["v"]))}
    want = forms.eager_attention(replace(c, rope=False), {**x, "q": q, **held}, step)
    values = four_values(case.module, case.program, case.graph, case.inputs, case.weights, eager={"y": want})
    # queries and weights of integer caches are rounded to integers too
    assert_agree(values, INTEGERS if e.arranged("keys").cache_form is not None else forms.NARROW)


def test_solver() -> None:
    solver, text = parse_stored("trim(int4(channel))")
    e = parse_encoding(text)
    w = np.random.default_rng(0).standard_normal((32, 512)).astype(np.float32)
    w[:, 7] *= 6
    assert solver is not None and solver.text(e) == "trim(int4(channel))"
    errors = [np.square(e.decode(s) - w).sum(-1) for s in (solver.solve(w, None, e), e.encode(w))]
    assert (errors[0] <= errors[1]).all() and (errors[0] < errors[1]).any()
    case = forms.linear_case("f32", "trim(int4(channel))", 2)
    replace(case, eager=None).check()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "bf16(layout=panel) + sparse(1%)",
            "bf16(layout=panel) + sparse(1%): only encodings with blocks of codes can have side streams",
        ),
        ("ternary + mean", "ternary + mean: only encodings with blocks of codes can have side streams"),
        ("int4 + mean + mean", "int4(group=32) + mean + mean: there is a stream mean already"),
        ("int4 + int8", "unknown addition to an encoding, 'int8'; known: lowrank, mean, sparse"),
    ],
)
def test_what_does_not_compose(text: str, words: str) -> None:
    with pytest.raises(EncodingError) as e:
        parse_encoding(text)
    assert str(e.value) == words


def test_weights_are_not_made_in_kernels() -> None:
    assert parse_encoding("ternary").ahead_of_time and not parse_encoding("e5m2").ahead_of_time
    with pytest.raises(RefusedError, match="ternary is an encoding of weights, made ahead of time"):
        forms.linear_case("ternary", "f32", 1)
    with pytest.raises(RefusedError, match="kv encoding: ternary is only made ahead of time, for weights"):
        _cache_encodings("ternary")
