"""The structure of an exported program's arguments and results: PyTorch's pytrees without their classes.

In: a program. Out: names of its tensor inputs and results, and the two descriptions
(`tilewright.runtime.structure`) that the artifact carries. Independent of operators.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from tilewright.ir.errors import UnsupportedError
from tilewright.runtime.structure import Node

#: constants that results and arguments may hold
_CONSTANTS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Described:
    """`inputs`: the placeholder of each tensor input and its name, in order; `results`: a name for each
    result that the program computes, by its node; `meta`: both structures, for the module."""

    inputs: tuple[tuple[Any, str], ...]
    results: dict[Any, str]
    meta: dict[str, object]


def describe(ep: ExportedProgram) -> Described:
    """Raises UnsupportedError for arguments and results that are not tensors, numbers, strings or None."""
    inputs, taken = _inputs(ep)
    results, made = _outputs(ep)
    meta = {"inputs": _tuples([[n, node.to_json()] for n, node in taken]), "outputs": _tuples(made.to_json())}
    return Described(inputs, results, meta)


def _tuples(x: Any) -> Any:
    return tuple(map(_tuples, x)) if isinstance(x, list | tuple) else x


# ------------------------------------------------------------------ arguments
def _inputs(ep: ExportedProgram) -> tuple[tuple[tuple[Any, str], ...], list[tuple[str, Node]]]:
    nodes = {n.name: n for n in ep.graph.nodes if n.op == "placeholder"}
    specs = [s.arg for s in ep.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    names = _Names()
    tensors: list[tuple[Any, str]] = []

    def leaf(n: int, path: str) -> Node:
        node = nodes.get(specs[n].name)
        val = node.meta.get("val") if node is not None else None
        if isinstance(val, torch.Tensor):
            tensors.append((node, names.fresh(path or "input")))
            return Node("tensor", tensors[-1][1])
        return Node(
            "value",
            value=_constant(val if node is not None else getattr(specs[n], "value", None), f"input {path}"),
        )

    taken = [(name, _walk(spec, leaves, name, leaf)) for name, spec, leaves in _arguments(ep, len(specs))]
    return tuple(tensors), taken


def _arguments(ep: ExportedProgram, count: int) -> Iterator[tuple[str, Any, range]]:
    """Name, tree and leaves of each argument: those in order, then those by name."""
    spec = ep.call_spec.in_spec
    if spec is None:
        yield from ((f"input_{n}", None, range(n, n + 1)) for n in range(count))
        return
    args, kwargs = spec.children()
    signature = ep.module_call_graph[0].signature
    listed = list((signature.forward_arg_names if signature else None) or ())
    named = list(kwargs.context)
    parts = [*args.children(), *kwargs.children()]
    first = (
        listed[: args.num_children]
        if len(listed) == len(parts)
        else [f"input_{n}" for n in range(args.num_children)]
    )
    at = 0
    for name, part in zip([*first, *named], parts, strict=True):
        yield name, part, range(at, at + part.num_leaves)
        at += part.num_leaves


# ------------------------------------------------------------------ results
def _outputs(ep: ExportedProgram) -> tuple[dict[Any, str], Node]:
    (out,) = (n for n in ep.graph.nodes if n.op == "output")
    changed = sum(1 for s in ep.graph_signature.output_specs if s.kind != OutputKind.USER_OUTPUT)
    values: Sequence[Any] = out.args[0][changed:]
    names = _Names()
    results: dict[Any, str] = {}

    def leaf(n: int, path: str) -> Node:
        value = values[n]
        if not isinstance(value, torch.fx.Node):
            return Node("value", value=_constant(value, f"result {path or 'output'}"))
        if value not in results:
            results[value] = names.fresh(path or "output")
        return Node(_kind(value), results[value])

    spec = ep.call_spec.out_spec
    if spec is None:
        return results, Node("tuple", children=tuple((n, leaf(n, f"output_{n}")) for n in range(len(values))))
    return results, _walk(spec, range(spec.num_leaves), "", leaf)


def _kind(value: Any) -> str:
    """A tensor, or the Python number that a size becomes."""
    val = value.meta.get("val")
    sizes = {
        torch.SymInt: "int",
        torch.SymFloat: "float",
        torch.SymBool: "bool",
        bool: "bool",
        int: "int",
        float: "float",
    }
    return sizes.get(type(val), "tensor")


def _constant(x: Any, where: str) -> Any:
    if not isinstance(x, _CONSTANTS) or isinstance(x, torch.SymInt | torch.SymFloat | torch.SymBool):
        what = (
            "a dynamic number"
            if isinstance(x, torch.SymInt | torch.SymFloat | torch.SymBool)
            else type(x).__name__
        )
        raise UnsupportedError(
            f"{where} is {what}, which is not supported",
            "",
            "pass and return tensors, numbers, strings and None",
        )
    return x


# ------------------------------------------------------------------ trees
def _walk(spec: Any, leaves: range, path: str, leaf: Any) -> Node:
    """The node of a tree spec whose leaves have these numbers; `leaf` gives a leaf's from its number and
    name."""
    if spec is None or spec.is_leaf():
        return leaf(leaves[0], path)  # type: ignore[no-any-return]
    kind, name, keys = _container(spec)
    at, children = leaves.start, []
    for key, part in zip(keys, spec.children(), strict=True):
        children.append(
            (key, _walk(part, range(at, at + part.num_leaves), _joined(path, key, kind, len(keys)), leaf))
        )
        at += part.num_leaves
    return Node(kind, name, children=tuple(children))


def _joined(path: str, key: Any, kind: str, count: int) -> str:
    if kind in ("tuple", "list"):
        return path if count == 1 and not path else f"{path or 'output'}_{key}"
    word = re.sub(r"\W", "_", str(key))
    return f"{path}_{word}" if path else word


def _container(spec: Any) -> tuple[str, str, list[Any]]:
    """Kind, class name and keys of a container: Python's own as they are, others by the keys that they are
    registered with."""
    if spec.type in (tuple, list):
        return spec.type.__name__, "", list(range(spec.num_children))
    empty = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    name = type(empty).__name__
    if isinstance(empty, tuple) and hasattr(empty, "_fields"):
        return "named", name, list(empty._fields)
    keys = _keys(spec, empty)
    if (
        all(isinstance(k, str) and k.isidentifier() for k in keys)
        and not isinstance(empty, dict)
        or _model_output(spec, empty)
    ):
        return "object", name, keys
    if isinstance(empty, Mapping) and all(isinstance(k, _CONSTANTS) for k in keys):
        return "dict", "", keys
    return "list", "", list(range(spec.num_children))


def _model_output(spec: Any, empty: Any) -> bool:
    """A dict with fields of its own: transformers' ModelOutput."""
    return isinstance(empty, dict) and hasattr(type(empty), "__dataclass_fields__") and spec.num_children > 0


def _keys(spec: Any, empty: Any) -> list[Any]:
    """The keys of a registered container's children; their places where it names none."""
    if isinstance(empty, Mapping) and len(empty) == spec.num_children:
        return list(empty)
    node = pytree.SUPPORTED_NODES.get(spec.type)
    if node is None or node.flatten_with_keys_fn is None:
        return list(range(spec.num_children))
    pairs, _ = node.flatten_with_keys_fn(empty)
    return [getattr(k, "key", getattr(k, "name", getattr(k, "idx", n))) for n, (k, _) in enumerate(pairs)]


class _Names:
    """Names that are given once."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def fresh(self, name: str) -> str:
        others = (f"{name}_{k}" for k in count(2))
        n = next(n for n in chain([name], others) if n not in self.taken)
        self.taken.add(n)
        return n
