"""Which operators AOT autograd rewrites into others before they are captured.

In: PyTorch's table of decompositions. Out: the same without the operators that have importers of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch._decomp import core_aten_decompositions

from tilewright.capture.aten import TABLE
from tilewright.capture.context import find_importer


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """From operators to what they are made of."""
    assert TABLE  # importing it fills it
    table = core_aten_decompositions()
    return {op: fn for op, fn in table.items() if find_importer(str(op), {}) is None}
