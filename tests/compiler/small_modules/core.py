"""PyTorch's core set of operators, and what becomes of each.

In: PyTorch's tags. Out: by name, how an operator is supported, or why it stays in PyTorch.
"""

from __future__ import annotations

import torch

from tilewright.capture import aten
from tilewright.capture.context import find_importer
from tilewright.capture.decompositions import decompositions

assert aten.TABLE  # importing it fills the table that importers are found in

#: operators of the core set that are not compiled, and why
STAYS: dict[str, str] = {
    **dict.fromkeys(("_fft_c2r.default", "_fft_r2c.default"), "complex numbers"),
    **dict.fromkeys(("rand.default", "randn.default", "randperm.default"), "random numbers"),
    "nonzero.default": "the size of its result depends on the data",
    "convolution_backward.default": "no kernel yet",
    "empty_strided.default": "memory of a given layout",
    "resize_.default": "it changes the memory of its operand",
}
#: operators that give a size or a number, which are computed while the model is captured or called
NUMBERS = (
    "_local_scalar_dense.default", "sym_numel.default", "sym_size.int", "sym_storage_offset.default",
    "sym_stride.int",
)  # fmt: skip


def core_operators() -> list[str]:
    """`add.Tensor`, … that PyTorch marks as core, in the order of names."""
    names = [
        n.removeprefix("aten::") for n in torch._C._dispatch_get_all_op_names() if n.startswith("aten::")
    ]
    found = []
    for name in sorted(names):
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        if torch.Tag.core in op.tags and not name.endswith("out"):
            found.append(f"{packet}.{overload or 'default'}")
    return found


def become() -> dict[str, str]:
    """Operator -> `imported`, `decomposed`, `number`, or `stays`; `unknown` for one that a list lacks."""
    decomposed = {str(op).removeprefix("aten.") for op in decompositions({})}
    out = {}
    for name in core_operators():
        known = (
            "imported" if find_importer(f"aten.{name}", {}) else "decomposed" if name in decomposed else ""
        )
        stated = "number" if name in NUMBERS else "stays" if name in STAYS else "unknown"
        out[name] = known or stated
    return out
