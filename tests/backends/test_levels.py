"""Level names to targets, tables that agree with the runtime's list, preludes with only what is used."""

from __future__ import annotations

import pytest

from tilewright.backends.cpp.isa import TARGETS, needed, prelude
from tilewright.backends.cpp.levels import UnknownLevelError, native_level, resolve_levels, runnable
from tilewright.backends.cpp.limits import build_limits
from tilewright.backends.cpp.target import symbol
from tilewright.ir.tile.ops import PRIMITIVES
from tilewright.runtime.cpu import LEVEL_FEATURES
from tilewright.runtime.limits import has_probe


def test_tables_and_the_runtime_agree_on_levels() -> None:
    assert {n: t.features for n, t in TARGETS.items()} == LEVEL_FEATURES
    assert all(n == t.name for n, t in TARGETS.items())


def test_names_become_targets_from_least_to_best() -> None:
    names = [t.name for t in resolve_levels("avx512, baseline,avx512")]
    assert names == ["baseline", "avx512"]
    assert resolve_levels("native") == (native_level(),)
    assert resolve_levels("all") == tuple(TARGETS.values())
    for text, name in (("avx2,sse9", "sse9"), ("", "")):
        with pytest.raises(UnknownLevelError) as e:
            resolve_levels(text)
        assert str(e.value) == (
            f"unknown CPU level {name!r}; expected native, all, or some of baseline, avx2, avx512, "
            "avx512_vnni, avx512_bf16"
        )


def test_dots_respect_the_ranges_of_their_operands() -> None:
    avx2 = TARGETS["avx2"]
    small, full = avx2.dot("i32", "u8", "i8", a_max=15), avx2.dot("i32", "u8", "i8")
    assert small is not None and full is not None
    assert (small.fn, full.fn) == ("t_dot_u8_i8_small", "t_dot_u8_i8")
    assert (
        avx2.dot("f32", "bf16", "bf16") is None
        and TARGETS["avx512_bf16"].dot("f32", "bf16", "bf16") is not None
    )
    for target in TARGETS.values():
        for pair in (("u8", "i8"), ("i8", "u8"), ("i8", "i8"), ("u8", "u8")):
            assert target.dot("i32", *pair) is not None
        assert all(any(f.symbol == d.fn for f in target.fns) for d in target.dots)


def test_every_level_has_every_primitive_on_scalars() -> None:
    two = {"add", "sub", "mul", "div", "rem", "min", "max", "lt", "le", "eq", "ne"}
    for target in TARGETS.values():
        for op in PRIMITIVES:
            if op in ("and", "or", "xor", "not", "shl", "shr", "select"):
                continue
            arity = 3 if op == "fma" else 2 if op in two else 1
            assert target.has(f"t_{op}", *["f32"] * arity), (target.name, op)


def test_a_prelude_holds_only_what_the_text_names() -> None:
    target = TARGETS["avx2"]
    names = {f.symbol for f in needed(target, "x = t_erf(y); z = t_cvt_bf16(y);")}
    assert names >= {"t_erf", "t_exp", "t_fma", "t_abs", "t_atleast", "t_atmost", "t_ldexp", "t_cvt_bf16"}
    assert not names & {"t_log", "t_sin", "t_dot_u8_i8", "t_load_n", "t_sqrt"}
    assert len(prelude(target, "t_add(a, b)")) < len(prelude(target)) / 4
    assert (
        symbol("t_cvt_f32", ("bf16x8",)) == "t_cvt_f32_bf16"
        and symbol("t_cvt_bf16", ("f32x8",)) == "t_cvt_bf16"
    )


@pytest.mark.parametrize("level", [t.name for t in runnable()])
def test_the_probe_of_limits_builds_at_every_level(level: str) -> None:
    assert has_probe(build_limits(TARGETS[level]))
