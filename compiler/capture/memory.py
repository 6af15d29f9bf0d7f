"""Tensors of this process as weights: what parameters, buffers and constants of a program become.

In: tensors by name. Out: the type and source of each weight, and the arrays that the sources name, over the
tensors' own memory where they are contiguous.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tilewright.capture.elements import HALVES, PYTORCH, element_of
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.graph.core import Inline, Stored, WeightExpr
from tilewright.ir.numbers import to_bits
from tilewright.ir.types import TensorType

Array = NDArray[np.generic]
#: buffers and constants of at most this many elements are kept in the text, where passes can see them
SMALL = 1024


class MemoryWeights:
    """What parameters become: `memory` tensors, one for tied ones; small buffers inline. Those in half
    precision are f32 to the graph, parameters of them stored as they are."""

    def __init__(self, tensors: Mapping[str, Any], parameters: Collection[str]) -> None:
        self.arrays: dict[str, Array] = {}
        self.parameters = frozenset(parameters)
        self._first: dict[object, str] = {}
        self._names: dict[str, str] = {}
        for name, x in tensors.items():
            if isinstance(x, torch.Tensor):
                key = (x.data_ptr(), x.dtype, tuple(x.shape), tuple(x.stride())) if x.numel() else name
                self._names[name] = self._first.setdefault(key, name)

    def name(self, name: str) -> str:
        """The name of the first of all parameters that are this tensor."""
        return self._names.get(name, name)

    def __call__(self, name: str, x: Any) -> tuple[TensorType, WeightExpr]:
        first, dtype = self.name(name), element_of(x.dtype, PYTORCH)
        encoding = parse_encoding(HALVES[x.dtype]) if x.dtype in HALVES and name in self.parameters else None
        array = array_of(x)
        shape = tuple(int(n) for n in array.shape)
        if name not in self.parameters and array.size <= SMALL:
            return TensorType(dtype, shape), Inline(dtype, shape, to_bits(array, dtype).tobytes())
        self.arrays[first] = array
        return TensorType(dtype, shape, encoding), Stored("memory", first)


def array_of(x: torch.Tensor) -> Array:
    """A tensor's values, those in half precision as f32."""
    wide = torch.float32 if x.dtype in HALVES else x.dtype
    array: Array = x.detach().cpu().to(wide).contiguous().numpy()
    return array
