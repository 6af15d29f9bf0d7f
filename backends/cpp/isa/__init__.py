"""Instruction tables of the CPU levels, from least to best: `TARGETS[name]`."""

from __future__ import annotations

from tilewright.backends.cpp.isa.avx2 import AVX2
from tilewright.backends.cpp.isa.avx512 import AVX512, AVX512_BF16, AVX512_VNNI
from tilewright.backends.cpp.isa.baseline import BASELINE
from tilewright.backends.cpp.isa.prelude import needed, prelude, spell
from tilewright.backends.cpp.target import Target

TARGETS: dict[str, Target] = {t.name: t for t in (BASELINE, AVX2, AVX512, AVX512_VNNI, AVX512_BF16)}

__all__ = ["TARGETS", "needed", "prelude", "spell"]
