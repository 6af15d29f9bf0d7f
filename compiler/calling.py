"""Calling a compiled model in the process that compiled it: NumPy arrays or torch tensors in, the same kind out.

In: a `Compiled` and its inputs, in order or by name. Out: one result, or a dict of them. The work is the runtime's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tilewright.api import Compiled


def call(compiled: Compiled, inputs: Sequence[object], named: Mapping[str, object]) -> object:
    """Results as torch tensors if any input is one, else as NumPy arrays. Raises what the runtime's `Model` raises."""
    model = compiled.load()
    torch_in = any(type(x).__module__.startswith("torch") for x in (*inputs, *named.values()))
    out = model(*[_array(x) for x in inputs], **{k: _array(v) for k, v in named.items()})
    if not torch_in:
        return out
    return {k: _tensor(v) for k, v in out.items()} if isinstance(out, dict) else _tensor(out)


def _array(x: Any) -> Any:
    if not type(x).__module__.startswith("torch"):
        return x  # numbers in lists are judged by their values, arrays by their dtype
    plain = x.detach().cpu()
    return (plain.float() if str(plain.dtype) == "torch.bfloat16" else plain).numpy()


def _tensor(x: Any) -> Any:
    import torch

    return torch.from_numpy(np.asarray(x, order="C"))
