"""What a captured graph returns: arguments, results of its program, views of both, sizes and constants.

In: a node of the graph's output. Out: a function that makes its value at each call. Views are taken by
PyTorch, so that they share memory as in eager PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from tilewright.capture.symbols import Symbols, is_symbolic
from tilewright.dynamo.importing import sizes_of, symbol_names, viewed
from tilewright.dynamo.nodes import value_of

#: of the arguments of a call, the program's results, the values of its symbols
Give = Callable[[Sequence[Any], Sequence[Any], Sequence[int]], Any]


def giver(x: Any, outputs: Sequence[str], names: Sequence[str], ranges: Sequence[str]) -> Give:
    """How a returned value is made from arguments, results and values of symbols."""
    if not isinstance(x, Node):
        return lambda args, made, symbols: x
    if not isinstance(value_of(x), torch.Tensor):
        return _number(x, ranges)
    base, views = viewed(x)
    if base.op == "placeholder":
        place = names.index(base.name)
        give: Give = lambda args, made, symbols: args[place]  # noqa: E731
    else:
        at = outputs.index(f"{base.name}_out")
        give = lambda args, made, symbols: made[at]  # noqa: E731
    for view in views:
        give = _view(give, view, ranges)
    return give


def _number(x: Node, ranges: Sequence[str]) -> Give:
    """A size, which symbols decide, or a number that is known."""
    value = value_of(x)
    if not is_symbolic(value):
        return lambda args, made, symbols: value
    size = sizes_of([Symbols(symbol_names(x.graph)).dim(value)], ranges)
    return lambda args, made, symbols: size(*symbols)[0]


def _view(give: Give, node: Node, ranges: Sequence[str]) -> Give:
    """The operator `node` on what `give` gives."""
    target, spelled = node.target, (node.args[1:], node.kwargs)
    assert callable(target)
    if not any(isinstance(a, Node) for a in pytree.tree_leaves(spelled)):
        rest, named = spelled
        return lambda args, made, symbols: target(give(args, made, symbols), *rest, **named)
    leaves, spec = pytree.tree_flatten(spelled)
    numbers = [_number(a, ranges) if isinstance(a, Node) else a for a in leaves]

    def run(args: Sequence[Any], made: Sequence[Any], symbols: Sequence[int]) -> Any:
        filled = [n(args, made, symbols) if callable(n) else n for n in numbers]
        rest, named = pytree.tree_unflatten(filled, spec)
        return target(give(args, made, symbols), *rest, **named)

    return run
