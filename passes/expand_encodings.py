"""expand-encodings: replaces loads of encoded buffers by loads of their streams and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tilewright.ir.plan.core import Program
from tilewright.ir.tile.expand import expand_encodings
from tilewright.passes.base import PassContext, ProgramPass


@dataclass(frozen=True)
class ExpandEncodings(ProgramPass):
    """Replace loads of encoded buffers by the tile operations that decode them."""

    name = "expand-encodings"
    gives: ClassVar[frozenset[str]] = frozenset({"expanded"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        return replace(program, kernels=tuple(expand_encodings(k) for k in program.kernels))
