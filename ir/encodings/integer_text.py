"""The text of integer encodings: `int1` to `int8` of weights, and `int8(token)` of activations and caches.

In: arguments of a name. Out: `IntWeight` or `IntToken`; EncodingError naming the option that does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.encoding_registry import Args, register_encoding
from tilewright.ir.encodings.integer import MODES, ORDERS, SCALE_OF, IntWeight
from tilewright.ir.encodings.token import IntToken

SCALES = ("f16", "bf16", "f32")


def _make_int(bits: int, args: Args) -> Encoding:
    if args.get("0") == "token" and not set(args.values()) & {"asym", *ORDERS}:
        return _make_token(bits, {k: v for k, v in args.items() if k != "0"})
    name, flags = f"int{bits}", [str(v) for k, v in args.items() if k.isdecimal()]
    left = {k: v for k, v in args.items() if not k.isdecimal()}
    known = "channel, group=N, asym|min|bipolar, scale=f16|bf16|f32|int8, layout=keys|values"
    scopes = [f for f in flags if f in ("channel", "token")]
    if scopes and "group" in left:
        raise EncodingError(f"{name}: {scopes[0]} and group={left['group']} exclude each other")
    scope = scopes[0] if scopes else "channel" if bits == 8 and not args else "group"
    order = str(left.pop("layout", "keys" if scope == "token" else "panel"))
    group = left.pop("group", 32 if scope == "group" else 0)
    scale = str(left.pop("scale", SCALE_OF[scope]))
    modes = [f for f in flags if f in MODES]
    unknown = [*left, *(f for f in flags if f not in (*MODES, *scopes)), *modes[1:], *scopes[1:]]
    _reject(name, unknown, known)
    mode = modes[0] if modes else "sym" if bits > 1 else "bipolar"
    _check_options(name, bits, group, scale, mode, dict(args))
    _check_order(name, scope, order)
    return IntWeight(bits, int(group), "i8" if scale == "int8" else scale, mode, order)


def _check_order(name: str, scope: str, order: str) -> None:
    if order not in ("panel", *ORDERS) or (scope == "channel") != (order == "panel") and scope != "group":
        raise EncodingError(f"{name}: layout={order} does not go with {scope}; caches have keys and values")


def _check_options(name: str, bits: int, group: object, scale: str, mode: str, got: dict[str, Any]) -> None:
    if (
        not isinstance(group, int)
        or scale not in (*SCALES, "int8")
        or group < 0
        or (group and (group % 4 or group > 1 << 20))
    ):
        raise EncodingError(
            f"{name}: group must be a positive multiple of 4 and scale one of f16, bf16, f32, int8; got {got}"
        )
    if scale == "int8" and (not group or mode != "sym" or bits > 6):
        raise EncodingError(
            f"{name}: scale=int8 needs a group, a symmetric code and at most 6 bits; got {got}"
        )
    if mode == "bipolar" and bits > 7:
        raise EncodingError(f"{name}: bipolar needs 7 bits or fewer")


def _make_token(bits: int, left: dict[str, Any]) -> Encoding:
    name, block = f"int{bits}(token)", left.pop("group", 0)
    sums, zero = int(left.pop("sums", 0)), int(left.pop("zero", 0))
    _reject(name, left, "group=N, sums, zero")
    if bits < 2:
        raise EncodingError(f"{name}: 2 to 8 bits are expected")
    if not isinstance(block, int) or isinstance(block, bool) or block < 0 or block % 4:
        raise EncodingError(f"{name}: group must be a positive multiple of 4, got {block}")
    return IntToken(sums, zero, bits, block)


def _reject(name: str, left: Mapping[str, object] | Sequence[str], known: str) -> None:
    if left:
        raise EncodingError(f"{name}: unknown option {', '.join(map(str, left))}; known: {known}")


for _bits in range(1, 9):
    register_encoding(f"int{_bits}", partial(_make_int, _bits))
