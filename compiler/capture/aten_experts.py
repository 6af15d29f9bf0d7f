"""PyTorch's experts: rows sorted by expert times the matrix of each, and counts of how many each has.

In: tensors. Out: `grouped_linear` with an expert for each row, which follows from where the experts' rows
end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tilewright.capture.context import Capture, aten, imports
from tilewright.capture.custom import swapped
from tilewright.ir.ops.common import product
from tilewright.ir.types import as_dim


@imports("transformers.grouped_mm_fallback")
def grouped_product(c: Capture, x: str, weight: str, ends: str) -> str:
    """x [S, K], weight [E, K, N], ends [E]: where the rows of each expert end -> [S, N]. Rows behind the last
    end are zero."""
    y = c.op("grouped_linear", x, _rows_of(c, weight), _expert_of_rows(c, ends, c.shape(x)[0]))
    return c.reshape(y, c.result().shape)


@aten("_grouped_mm")
def grouped_mm(
    c: Capture, x: str, weight: str, offs: str | None = None, bias: str | None = None, out_dtype: Any = None
) -> str:
    if c.rank(x) != 2 or c.rank(weight) != 3 or offs is None or bias is not None:
        raise c.no("only [S, K] by [E, K, N] with offs and without a bias is supported")
    if out_dtype is not None and c.element(out_dtype) != c.result().dtype:
        raise c.no(f"a result of {out_dtype} is not supported", "leave out_dtype out")
    return grouped_product(c, x, weight, offs)


def _rows_of(c: Capture, weight: str) -> str:
    """[E, K, N] as [E, N, K], which is nearly always how it is stored."""
    made = c.producer(weight)
    if made is not None and made.name == "transpose" and made.attr("perm") == (0, 2, 1):
        return made.operands[0]
    return swapped(c, weight)


def _expert_of_rows(c: Capture, ends: str, rows: Any) -> str:
    """[rows, 1]: how many experts end at or before each row."""
    row = c.reshape(c.op("iota", size=rows), (rows, 1))
    over = c.op("le", c.reshape(c.cast(ends, "i32"), (1, *c.shape(ends))), row)
    return c.reshape(c.op("sum", c.cast(over, "i32"), axes=(1,)), (rows, 1))


@aten("histc")
def histc(c: Capture, x: str, bins: int = 100, min: float = 0, max: float = 0) -> str:
    """Counts of values between the edges of bins; the last bin has both of its edges, NaN is in none."""
    if min == max:
        raise c.no("a range that follows from the values is not supported", "pass min and max")
    dtype = c.result().dtype
    edges = torch.linspace(
        min, max, bins + 1, dtype=torch.float64 if dtype == "f64" else torch.float32
    ).numpy()
    ends = np.append(edges[1:-1], np.nextafter(edges[-1], np.inf, dtype=edges.dtype))
    low, high = (c.reshape(c.numbers(np.array(e)), (bins, 1)) for e in (edges[:-1], ends))
    values = c.reshape(x, (1, as_dim(product(c.shape(x)))))
    inside = c.op("and", c.op("ge", values, low), c.op("lt", values, high))
    return c.op("sum", c.cast(inside, dtype), axes=(1,))
