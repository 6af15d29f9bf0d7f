"""The baseline level: any C++17 compiler with GCC's vector extensions, 16-byte registers, at most SSE2.

There is no fused multiply-add: `t_fma` rounds its product, so f32 results differ in the last place from other
levels.
"""

from __future__ import annotations

import numpy as np

from tilewright.backends.cpp.isa import dots, generic, math
from tilewright.backends.cpp.isa.make import merge, ternary, unary, vec
from tilewright.backends.cpp.isa.vectors import vectors
from tilewright.backends.cpp.target import Array, Fn, Target

HEADERS = r"""
#if defined(__SSE2__)
#include <emmintrin.h>
#endif
typedef int16_t tw_pairs __attribute__((vector_size(16)));
typedef int32_t tw_sums __attribute__((vector_size(16)));
static inline __attribute__((always_inline, unused)) tw_sums tw_madd(tw_pairs a, tw_pairs b) {
#if defined(__SSE2__)
    return (tw_sums)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    tw_sums x = (tw_sums)a, y = (tw_sums)b;
    return ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
#endif
}
"""


def _rounded_fma(a: Array, b: Array, c: Array) -> Array:
    with np.errstate(all="ignore"):
        return a * b + c


def _fma() -> list[Fn]:
    widths = [("f32", n) for n in (1, 2, 4)] + [("f64", n) for n in (1, 2)]
    plain = [ternary("fma", d, n, "return a * b + c;") for d, n in widths]
    return [Fn(f.name, f.args, f.result, f.text, _rounded_fma) for f in plain]


def _sqrt() -> list[Fn]:
    """One instruction with SSE2; elsewhere lane by lane."""
    out = []
    for dtype, lanes, suffix in (("f32", 4, "ps"), ("f64", 2, "pd")):
        each = ", ".join(f"t_sqrt(a[{k}])" for k in range(lanes))
        text = (
            f"\n#if defined(__SSE2__)\nreturn _mm_sqrt_{suffix}(a);\n#else\nreturn "
            f"{vec(dtype, lanes)}{{{each}}};\n#endif\n"
        )
        out.append(unary("sqrt", dtype, lanes, text))
    return out


def table() -> tuple[Fn, ...]:
    """All functions of the level."""
    return merge(
        generic.scalars(),
        math.functions(1, fused=False),
        vectors(16, fused=False),
        _fma(),
        _sqrt(),
        dots.BASELINE.fns,
    )


BASELINE = Target("baseline", 16, 16, (), (), dots.BASELINE.dots, table(), HEADERS)
