"""Rules for norms and activations: what each looks like when a framework has taken it apart.

In: the op a match ends in. Out: the semantic op, or None; `Declined` with the reason if only a detail is
wrong.
"""

from __future__ import annotations

import math

from tilewright.ir.graph.core import Op
from tilewright.ir.ops.common import same_shape
from tilewright.passes.patterns import Match, Pattern, View, either, last_axis, num, op, var
from tilewright.passes.rewrite import Declined, Rewrite

# ------------------------------------------------------------------ rms_norm
_SQUARE = either(op("mul", var("x"), var("x")), op("pow", var("x"), num(value=2.0)))
_MEAN = op("mean", _SQUARE, bind="mean")
_SHIFTED = either(op("add", _MEAN, num("eps")), _MEAN)
_UNIT = either(
    op("mul", var("x"), op("rsqrt", _SHIFTED)),
    op("div", var("x"), op("sqrt", _SHIFTED)),
    op("mul", var("x"), op("pow", _SHIFTED, num(value=-0.5))),
    op("mul", var("x"), op("div", num(value=1.0), op("sqrt", _SHIFTED))),
)
#: x is bound late in a product that starts with it, so a cast in between is a cast of the same value
_GAIN = either(op("add", var("w"), num("offset")), var("w"))


def rms_norm(r: Rewrite, at: Op) -> str | None:
    """x * rsqrt(mean(x^2) + eps), then times w or (offset + w); a product with no weight on it is a norm
    without one."""
    y = f"%{at.result.name}"
    weighted = _with_weight(r.old, at)
    if weighted is not None:
        m, weight, offset = weighted
        return _rms(r, m, weight, offset)
    plain = r.old.match(_UNIT, y)
    if plain is None or _weight_follows(r.old, y):
        return None
    return _rms(r, plain, None, 0.0)


def _with_weight(v: View, at: Op) -> tuple[Match, str, float] | None:
    for unit, gain in (at.operands, at.operands[::-1]):
        m = v.match(_UNIT, strip_casts(v, unit))
        if m is None:
            continue
        g = v.match(_GAIN, strip_casts(v, gain))
        weight = strip_casts(v, g["w"]) if g is not None else ""
        if g is not None and weight[0] == "@" and v.type(weight).rank == 1:
            return m, weight, g.numbers.get("offset", 0.0)
    return None


def _weight_follows(v: View, y: str) -> bool:
    users = v.users.get(y, [])
    while len(users) == 1 and users[0].name == "cast":
        users = v.users.get(f"%{users[0].result.name}", [])
    return any(u.name == "mul" and _with_weight(v, u) is not None for u in users)


def _rms(r: Rewrite, m: Match, weight: str | None, offset: float) -> str:
    x, mean = strip_casts(r.old, m["x"]), m.ops["mean"]
    if not last_axis(r.old.type(m["x"]), mean.attr("axes")) or not mean.attr("keepdims"):
        raise Declined(f"the mean is over axes {mean.attr('axes')}, not over the last axis alone")
    if weight is not None and r.old.type(weight).shape[0] != r.old.type(x).shape[-1]:
        raise Declined(
            f"the weight has {r.old.type(weight).shape[0]} elements for rows of {r.old.type(x).shape[-1]}"
        )
    operands = (x,) if weight is None else (x, weight)
    return r.emit("rms_norm", *operands, eps=m.numbers.get("eps", 0.0), axis=-1, offset=offset)


def strip_casts(v: View, operand: str) -> str:
    """The operand without casts between float types."""
    cast = v.producer(operand, "cast")
    while cast is not None and v.type(cast.operands[0]).dtype in ("f32", "bf16", "f16"):
        operand = cast.operands[0]
        cast = v.producer(operand, "cast")
    return operand


# ------------------------------------------------------------------ layer_norm
_CENTRED = op("sub", var("x"), op("mean", var("x"), bind="centre"))
_SPREAD = either(
    op(
        "add",
        op("mean", either(op("mul", var("d"), var("d")), op("pow", var("d"), num(value=2.0))), bind="mean"),
        num("eps"),
    ),
    op("add", op("var", var("x"), bind="mean"), num("eps")),
)
_NORMAL: Pattern = either(op("mul", var("d"), op("rsqrt", _SPREAD)), op("div", var("d"), op("sqrt", _SPREAD)))


def layer_norm(r: Rewrite, at: Op) -> str | None:
    """(x - mean) / sqrt(variance + eps), with weight and bias if they follow."""
    y = f"%{at.result.name}"
    affine = r.old.match(op("add", op("mul", _NORMAL, var("w")), var("b")), y) if at.name == "add" else None
    m = affine or (r.old.match(_NORMAL, y) if at.name == "div" else None)
    if m is None or affine is None and any(u.name == "mul" for u in r.old.users.get(y, [])):
        return None
    centred = r.old.match(_CENTRED, m["d"])
    if centred is None:
        raise Declined("the numerator is not x - mean(x)")
    x = centred["x"]
    for mean in (centred.ops["centre"], m.ops["mean"]):
        if not last_axis(r.old.type(x), mean.attr("axes")) or not mean.attr("keepdims"):
            raise Declined(f"a mean is over axes {mean.attr('axes')}, not over the last axis alone")
    params = [m["w"], m["b"]] if affine is not None else []
    if any(p[0] != "@" or r.old.type(p).rank != 1 for p in params):
        raise Declined("weight and bias are not one-dimensional weights of the model")
    return r.emit("layer_norm", x, *params, eps=m.numbers["eps"], axis=-1)


# ------------------------------------------------------------------ activations
_HALF = num(value=0.5)
_ERF = op(
    "add",
    op(
        "erf",
        either(op("mul", var("x"), num(value=math.sqrt(0.5))), op("div", var("x"), num(value=math.sqrt(2)))),
    ),
    num(value=1.0),
)
_GELU = (
    op("mul", op("mul", var("x"), _HALF), _ERF),
    op("mul", var("x"), op("mul", _ERF, _HALF)),
    op("mul", _HALF, op("mul", var("x"), _ERF)),
)
_CUBE = either(op("pow", var("x"), num(value=3.0)), op("mul", var("x"), op("mul", var("x"), var("x"))))
_INNER = op(
    "mul", op("add", var("x"), op("mul", _CUBE, num(value=0.044715))), num(value=math.sqrt(2 / math.pi))
)
_INNER2 = op(
    "mul", op("mul", var("x"), num(value=0.79788456)),
    op("add", num(value=1.0), op("mul", op("mul", var("x"), num(value=0.044715)), var("x"))),
)  # fmt: skip
_TANH = op("add", op("tanh", either(_INNER, _INNER2)), num(value=1.0))
_GELU_TANH = (
    op("mul", op("mul", var("x"), _HALF), _TANH),
    op("mul", var("x"), op("mul", _TANH, _HALF)),
    op("mul", _HALF, op("mul", var("x"), _TANH)),
)
_SIGMOID = op("sigmoid", var("x"))


def _activation(r: Rewrite, at: Op, name: str, patterns: tuple[Pattern, ...]) -> str | None:
    m = r.old.match(either(*patterns), f"%{at.result.name}")
    return None if m is None else r.emit(name, m["x"])


def gelu(r: Rewrite, at: Op) -> str | None:
    return _activation(r, at, "gelu", _GELU)


def gelu_tanh(r: Rewrite, at: Op) -> str | None:
    return _activation(r, at, "gelu_tanh", _GELU_TANH)


def silu(r: Rewrite, at: Op) -> str | None:
    ratio = op("div", var("x"), op("add", num(value=1.0), op("exp", op("neg", var("x")))))
    return _activation(r, at, "silu", (op("mul", var("x"), _SIGMOID), ratio))


def quick_gelu(r: Rewrite, at: Op) -> str | None:
    return _activation(
        r, at, "quick_gelu", (op("mul", var("x"), op("sigmoid", op("mul", var("x"), num(value=1.702)))),)
    )


# ------------------------------------------------------------------ a product with nothing to sum
def outer_product(r: Rewrite, at: Op) -> str | None:
    """A matmul whose contracted axis has one element is a broadcast product (how rotary angles are
    written)."""
    a, b = at.operands
    if at.attr("transpose_a") or at.attr("transpose_b") or r.old.type(a).shape[-1] != 1:
        return None
    shape = at.result.type.shape
    left, right = unexpanded(r.old, a), unexpanded(r.old, b)
    plain = r.b.op("mul", r.b.mapped(left), r.b.mapped(right))
    return plain if same_shape(r.b.type(plain).shape, shape) else r.b.op("expand", plain, shape=shape)


def unexpanded(v: View, operand: str) -> str:
    """The operand before it was stretched, if its rank stays."""
    e = v.producer(operand, "expand", "cast")
    while e is not None and v.type(e.operands[0]).rank == v.type(operand).rank and (e.name == "expand"):
        operand = e.operands[0]
        e = v.producer(operand, "expand")
    return operand
