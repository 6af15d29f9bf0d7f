"""Calling a compiled model in the process that compiled it: NumPy arrays or torch tensors in, the same kind
out.

In: a loaded model and its inputs, in order or by name. Out: what the module gives, in containers of its own
classes. The work is the runtime's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.runtime.model import Model


def call(
    model: Model,
    inputs: Sequence[object],
    named: Mapping[str, object],
    containers: Callable[[Sequence[object]], object] | None = None,
) -> object:
    """Results as torch tensors if any input is one, else as NumPy arrays; a plain module's in the containers
    that `containers` makes of its leaves, or in Python's. Raises what `Model` raises."""
    if model.is_language_model:
        out = model(*map(_array, inputs), **{k: _array(v) for k, v in named.items()})
        return _tensor(out) if any(map(_is_tensor, (*inputs, *named.values()))) else out
    form = model.plain.structure
    given = form.tensors(inputs, named)
    results: dict[str, Any] = dict(model.plain.run({k: _array(v) for k, v in given.items()}))
    if any(map(_is_tensor, given.values())):
        dtypes = {t.name: t.dtype for t in model.plain.entry.outputs}
        results = {k: _tensor(v, dtypes[k]) for k, v in results.items()}
    return form.build(results) if containers is None else containers(form.leaves(results))


def _is_tensor(x: object) -> bool:
    return type(x).__module__.startswith("torch")


def _array(x: Any) -> Any:
    if not _is_tensor(x):
        return x  # numbers in lists are judged by their values, arrays by their dtype
    plain = x.detach().cpu()
    return (plain.float() if str(plain.dtype) == "torch.bfloat16" else plain).numpy()


def _tensor(x: Any, dtype: str = "") -> Any:
    import torch

    out = torch.from_numpy(np.asarray(x, order="C"))
    return out.to(torch.bfloat16) if dtype == "bf16" else out
