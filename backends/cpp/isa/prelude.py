"""The prelude of rendered kernels: headers, vector types, helpers, and the table functions that are used.

In: a target and the text that will follow. Out: C++ text. Functions that the text does not name are left out,
because the compiler's time follows the lines it reads.
"""

from __future__ import annotations

import re

from tilewright.backends.cpp.isa.make import lanes_of
from tilewright.backends.cpp.target import BYTES, CTYPE, Fn, Target, element

#: defined by the text that all kernels of a level share
GUARD = "TW_PRELUDE"
_SYMBOLS: dict[str, dict[str, list[Fn]]] = {}
_WORD = re.compile(r"\bt_\w+")

_HELPERS = r"""
#define TW_INLINE static inline __attribute__((always_inline, unused))
template <class T> struct tw_lane { typedef T type; enum { vector = 0 }; };
template <class V, class S> TW_INLINE V tw_splat(S s) {
    typedef typename tw_lane<V>::type E;
    if constexpr (tw_lane<V>::vector) return (E)s - V{}; else return (E)s;
}
template <class D, class S> TW_INLINE D tw_as(S s) {
    static_assert(sizeof(D) == sizeof(S), "a bit cast keeps its size");
    D d; __builtin_memcpy(&d, &s, sizeof d); return d;
}
template <class D, class S> TW_INLINE D tw_to(S s) {
    if constexpr (tw_lane<D>::vector) return __builtin_convertvector(s, D); else return (D)s;
}
template <class V> TW_INLINE V tw_load(const void* p) { V v; __builtin_memcpy(&v, p, sizeof v); return v; }
template <class V> TW_INLINE void tw_store(void* p, V v) { __builtin_memcpy(p, &v, sizeof v); }
TW_INLINE int64_t tw_clamp(int64_t n, int64_t most) { return n < 0 ? 0 : n > most ? most : n; }
"""


def typedefs(target: Target) -> str:
    """`f32x16` and similar types, from two lanes up to twice a register. bf16, f16 and bool vectors are those
    of their bits.
    """
    out = []
    for dtype, size in BYTES.items():
        lanes = 2
        while lanes * size <= 2 * target.bytes:
            name = f"{dtype}x{lanes}"
            alias = {"bf16": "u16", "f16": "u16", "bool": "u8"}.get(dtype)
            if alias:
                out.append(f"typedef {alias}x{lanes} {name};")
            else:
                out.append(f"typedef {CTYPE[dtype]} {name} __attribute__((vector_size({lanes * size})));")
                out.append(
                    f"template <> struct tw_lane<{name}> {{ typedef {CTYPE[dtype]} type; enum {{ vector = "
                    f"1 }}; }};"
                )
            lanes *= 2
    order = [t for t in out if not t.startswith("typedef u") or "attribute" in t]
    return "\n".join(order + [t for t in out if t not in order])


def spell(fn: Fn) -> str:
    """The function as C++."""
    const = "" if fn.name.startswith("t_store") else "const "
    params = ", ".join(f"{_ctype(t, const)} {n}" for t, n in zip(fn.args, "abcdef", strict=False))
    return f"TW_INLINE {_ctype(fn.result, const)} {fn.symbol}({params}) {{ {fn.text} }}"


def _ctype(spelled: str, const: str) -> str:
    if spelled.endswith("*"):
        return f"{const}{CTYPE[spelled[:-1]]}*"
    return spelled if lanes_of(spelled) > 1 or spelled == "void" else CTYPE[element(spelled)]


def needed(target: Target, text: str) -> list[Fn]:
    """The functions that `text` names and those that they name, in table order."""
    by_symbol = _by_symbol(target)
    seen: set[str] = set()
    work = [text]
    while work:
        for name in set(_WORD.findall(work.pop())) - seen:
            if name in by_symbol:
                seen.add(name)
                work += [f.text for f in by_symbol[name]]
    return [f for f in target.fns if f.symbol in seen]


def _by_symbol(target: Target) -> dict[str, list[Fn]]:
    if target.name not in _SYMBOLS:
        table = _SYMBOLS.setdefault(target.name, {})
        for f in target.fns:
            table.setdefault(f.symbol, []).append(f)
    return _SYMBOLS[target.name]


def common(target: Target) -> str:
    """What all kernels of a level share, behind a guard: a precompiled header of this text may stand before
    it."""
    head = f"#ifndef {GUARD}\n#define {GUARD}\n#include <stddef.h>\n#include <stdint.h>\n{target.headers}"
    return "\n".join([head, _HELPERS, typedefs(target), "#endif", ""])


def prelude(target: Target, text: str | None = None) -> str:
    """Everything that `text` needs before it; without a text the whole table."""
    fns = list(target.fns) if text is None else needed(target, text)
    forward = [spell(f).split("{")[0].rstrip() + ";" for f in fns]
    return "\n".join(
        [f"// instruction table: {target.name}", common(target), *forward, *[spell(f) for f in fns], ""]
    )
