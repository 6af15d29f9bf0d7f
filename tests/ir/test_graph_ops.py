"""Op records: meaning against PyTorch, type inference against meaning, axis roles against dependences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.ir.op_samples import Array, Sample, f, ints, run, samples
from tilewright.ir.numbers import HELD
from tilewright.ir.ops import OPS, OpTypeError, infer, make_op
from tilewright.ir.ops.build import complete_attrs
from tilewright.ir.ops.pointwise import pointwise
from tilewright.ir.types import symbol, tensor

ALL = samples()


def test_every_op_has_a_sample() -> None:
    stateful = {name for name, op in OPS.items() if op.state}
    assert {s.op for s in ALL} >= set(OPS) - stateful


@pytest.mark.parametrize("s", [s for s in ALL if s.torch], ids=str)
def test_meaning_is_that_of_pytorch(s: Sample) -> None:
    got = run(s.op, s.args, s.attrs)
    assert s.torch is not None
    want = s.torch(*[torch.from_numpy(np.array(a)) for a in s.args])
    for mine, theirs in zip(got, want if isinstance(want, tuple) else (want,), strict=False):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("s", ALL, ids=str)
def test_inferred_types_are_those_of_the_values(s: Sample) -> None:
    for t, x in zip(infer(s.op, s.types, s.attrs), run(s.op, s.args, s.attrs), strict=True):
        assert (t.shape, HELD[t.dtype]) == (x.shape, x.dtype)


@pytest.mark.parametrize("s", [s for s in ALL if s.args], ids=str)
def test_axis_roles_are_true(s: Sample) -> None:
    """Changing entry i of a kept axis changes only entry i of the result's; of a causal axis only entries
    from i on."""
    record = OPS[s.op]
    full = complete_attrs(record, s.types, s.attrs)
    roles = record.axes(s.types, full)
    assert [len(r) for r in roles] == [a.ndim for a in s.args]
    before = run(s.op, s.args, s.attrs)[0]
    for n, (arg, axes) in enumerate(zip(s.args, roles, strict=True)):
        for axis, role in enumerate(axes):
            if role[0] in ("keep", "causal") and arg.shape[axis] > 1:
                assert before.ndim == 0 or len(role) == 2
                _changes_stay(s, n, axis, role[0], role[1], before)  # type: ignore[misc]


def _changes_stay(s: Sample, n: int, axis: int, word: str, place: int, before: Array) -> None:
    for i in range(s.args[n].shape[axis]):
        args = [np.array(a) for a in s.args]
        at = (slice(None),) * axis + (i,)
        args[n][at] = (
            ~args[n][at] if args[n].dtype == bool else 0 if args[n].dtype == np.int32 else args[n][at] * 2 + 1
        )
        after = run(s.op, args, s.attrs)[0]
        same = (after == before) | (np.isnan(after.astype(float)) & np.isnan(before.astype(float)))
        others = np.moveaxis(same, place, 0)
        if word == "keep" and s.op not in ("split",):
            assert before.shape[place] == s.args[n].shape[axis]
            assert np.delete(others, i, 0).all()
        elif word == "causal":
            assert others[:i].all()


# ------------------------------------------------------------------ attention's attributes, against a plain l
def _naive(
    q: Array, k: Array, v: Array, at: dict[str, object], sinks: Array | None, slopes: Array | None
) -> Array:
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    group = q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(*q.shape[:3]):
        logits, rows = [], []
        for j in range(k.shape[1]):
            if at.get("causal") and j > i or at.get("window") and i - j >= int(str(at["window"])):
                continue
            s = float(q[b, i, h].astype(float) @ k[b, j, h // group].astype(float)) * float(str(at["scale"]))
            cap = float(str(at.get("softcap", 0.0)))
            s = cap * math.tanh(s / cap) if cap else s
            logits.append(s + (slopes[h] * (j - i) if slopes is not None else 0.0))
            rows.append(v[b, j, h // group])
        weights = np.exp(np.array(logits))
        total = weights.sum() + (math.exp(sinks[h]) if sinks is not None else 0.0)
        out[b, i, h] = (weights[:, None] * np.array(rows)).sum(0) / total
    return out


@pytest.mark.parametrize("extra", [{}, {"window": 3}, {"softcap": 0.7}, {"sinks": True}, {"bias": "alibi"},
{"causal": False},
                                   {"window": 2, "softcap": 0.5, "sinks": True, "bias": "alibi"}],
                                   ids=str)  # fmt: skip
def test_attention_against_a_loop(extra: dict[str, object]) -> None:
    q, k, v = f(2, 7, 4, 8) * 2, f(2, 7, 2, 8, seed=1), f(2, 7, 2, 8, seed=2)
    at = {"heads": 4, "kv_heads": 2, "scale": 0.5, "causal": True, **extra}
    sinks = f(4, seed=5) if extra.get("sinks") else None
    slopes = np.abs(f(4, seed=6)) if extra.get("bias") else None
    args = [q, k, v, *(a for a in (sinks, slopes) if a is not None)]
    got = run("attend", args, at)[0]
    np.testing.assert_allclose(got, _naive(q, k, v, at, sinks, slopes), rtol=1e-5, atol=1e-6)
    plain = run("attend", [q, k, v], {"heads": 4, "kv_heads": 2, "scale": 0.5, "causal": True})[0]
    assert not extra or np.abs(got - plain).max() > 0.01


def test_a_row_that_sees_nothing_is_zero() -> None:
    q, k, v = f(1, 2, 1, 4), f(1, 2, 1, 4), f(1, 2, 1, 4)
    out = run(
        "attend",
        [q, k, v, np.zeros((1, 2), bool)],
        {"heads": 1, "kv_heads": 1, "scale": 1.0, "mask": "padding"},
    )[0]
    assert (out == 0).all()


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_is_a_rotation_of_pairs(interleaved: bool) -> None:
    x, angles = f(3, 2, 8), f(3, 3, seed=1)
    got = run("rope", [x, np.cos(angles), np.sin(angles)], {"dim": 6, "interleaved": interleaved})[0]
    for t, h, j in np.ndindex(3, 2, 3):
        a, b = (2 * j, 2 * j + 1) if interleaved else (j, j + 3)
        z = complex(x[t, h, a], x[t, h, b]) * complex(math.cos(angles[t, j]), math.sin(angles[t, j]))
        np.testing.assert_allclose([got[t, h, a], got[t, h, b]], [z.real, z.imag], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[..., 6:], x[..., 6:])


# ------------------------------------------------------------------ accuracy at the edges
@pytest.mark.parametrize("name", ["tanh", "silu", "gelu_tanh", "sigmoid", "softplus", "gelu"])
def test_activations_at_the_edges(name: str) -> None:
    x = np.concatenate([np.geomspace(1e-30, 3e38, 400), -np.geomspace(1e-30, 3e38, 400), [0.0]]).astype(
        np.float32
    )
    (got,) = run(name, [x], {})
    fns = {
        "tanh": torch.tanh,
        "gelu_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh"),
        "sigmoid": torch.sigmoid,
    }
    fn = fns.get(name) or getattr(torch.nn.functional, name)
    want = fn(torch.from_numpy(x).double()).numpy()
    assert np.isfinite(got).all()
    np.testing.assert_allclose(
        got,
        want,
        rtol=3e-6 if name not in ("gelu", "gelu_tanh") else 2e-5,
        atol=1e-7 if "gelu" in name else 1e-30,
    )


# ------------------------------------------------------------------ symbolic inference and messages
def test_symbolic_dimensions_are_equal_when_their_difference_expands_to_zero() -> None:
    t, s = symbol("T"), symbol("S")
    (out,) = infer("reshape", [tensor("f32", t * (s + 1), 4)], {"shape": [4 * t * s + 4 * t]})
    assert str(out.shape[0]) == "4*S*T + 4*T"
    (out,) = infer("concat", [tensor("f32", t), tensor("f32", s)], {"axis": 0})
    assert out.shape == (t + s,)


@pytest.mark.parametrize(
    ("name", "types", "attrs", "message"),
    [
        (
            "linear",
            [tensor("f32", "T", 4), tensor("f32", 3, 5)],
            {},
            "linear: expected x whose last axis is K = 5, got f32[T, 4]",
        ),
        (
            "add",
            [tensor("f32", 2), tensor("i32", 2)],
            {},
            "add: operands have element types f32, i32; cast them to one",
        ),
        (
            "add",
            [tensor("f32", "T"), tensor("f32", "S")],
            {},
            "add: shapes [T], [S] do not broadcast on axis 0",
        ),
        (
            "reshape",
            [tensor("f32", "T", 4)],
            {"shape": [5]},
            "reshape: [T, 4] does not hold as many elements as [5]",
        ),
        ("softmax", [tensor("f32", 2)], {"axis": 1}, "softmax: expected an axis within rank 1, got axis 1"),
        ("softmax", [tensor("f32", 2)], {}, "softmax: attribute 'axis' (axis) is missing"),
        ("softmax", [tensor("f32", 2)], {"axis": "x"}, "softmax: attribute 'axis' must be axis, got 'x'"),
        (
            "softmax",
            [tensor("f32", 2)],
            {"axis": 0, "dim": 0},
            "softmax: unknown attribute 'dim'; known: axis",
        ),
        ("encode", [tensor("f32", 2, 3)], {"encoding": "int9"}, None),
        ("const", [], {"value": 300, "dtype": "u8"}, "const: 300 is not a value of u8"),
    ],
)
def test_messages(name: str, types: list[object], attrs: dict[str, object], message: str | None) -> None:
    with pytest.raises(OpTypeError) as e:
        infer(name, types, attrs)  # type: ignore[arg-type]
    assert message is None or str(e.value) == message


def test_indices_are_checked() -> None:
    with pytest.raises(IndexError, match=r"select_rows: index -1 is outside 0\.\.2"):
        run("select_rows", [f(3, 2), ints(-1)], {})


def test_a_user_defines_an_op_in_one_place() -> None:
    pointwise(
        "test_hardswish",
        1,
        lambda p, x: p.mul(x, p.min(p.max(p.add(x, p.const(3.0)), p.const(0.0)), p.const(6.0))),
    )
    x = f(2, 9) * 4
    try:
        op = make_op("test_hardswish", ["%x"], [tensor("f32", 2, 9)], {}, ["y"])
        assert op.result.type == tensor("f32", 2, 9)
        want = torch.nn.functional.hardswish(torch.from_numpy(x)).numpy() * 6
        np.testing.assert_allclose(run("test_hardswish", [x], {})[0], want, rtol=1e-5, atol=1e-5)
    finally:
        del OPS["test_hardswish"]
