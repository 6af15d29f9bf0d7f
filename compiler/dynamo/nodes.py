"""What nodes of a PyTorch graph are: operators that compute, sizes, tensors that a kernel can read.

In: nodes with their example values (`meta["val"]`). Out: answers. Independent of Graph IR.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from tilewright.capture.elements import PYTORCH
from tilewright.capture.symbols import is_symbolic
from tilewright.capture.traced import location

#: operators whose results come from a generator of random numbers: PyTorch's own, so that its seeds hold
RANDOM = torch.Tag.nondeterministic_seeded


def value_of(node: Node) -> Any:
    """The example value of a node."""
    return node.meta.get("val")


def is_tensor(node: Node) -> bool:
    return isinstance(value_of(node), torch.Tensor)


def leaves(value: Any) -> Iterator[Any]:
    """The tensors and numbers of a value that may be a tuple."""
    if isinstance(value, list | tuple):
        for v in value:
            yield from leaves(v)
    else:
        yield value


def is_size(node: Node) -> bool:
    """A number that shapes decide."""
    return is_symbolic(value_of(node)) or type(value_of(node)) in (int, bool, float)


def is_part(node: Node) -> bool:
    """One result of an operator that has several."""
    return "getitem" in str(node.target)


def computes(node: Node) -> bool:
    """An operator on tensors."""
    return node.op == "call_function" and not is_size(node) and not is_part(node)


def unreadable(node: Node) -> str:
    """Why kernels cannot read or write a node's tensors; an empty string if they can."""
    for x in leaves(value_of(node)):
        if not isinstance(x, torch.Tensor):
            continue
        if x.device.type != "cpu":
            return f"a tensor on {x.device}"
        if x.dtype not in PYTORCH:
            return f"element type {x.dtype}".replace("torch.", "")
        if x.layout != torch.strided or x.is_quantized:
            return f"a tensor of layout {x.layout}".replace("torch.", "")
    return ""


def is_random(node: Node) -> bool:
    """An operator that draws random numbers: none whose probability of dropout is 0."""
    if RANDOM not in getattr(node.target, "tags", ()):
        return False
    arguments = node.target._schema.arguments
    given = {a.name: x for a, x in zip(arguments, node.args)} | node.kwargs
    drops = [a for a in arguments if a.name in ("dropout_p", "dropout")]
    return not drops or given.get(drops[0].name, drops[0].default_value) != 0


def place_of(node: Node) -> str:
    """`model.py:88`: the innermost line of the model's own source; an empty string if there is none."""
    at = location(node)
    return f"{at.file}:{at.line}" if at is not None and at.file else ""
