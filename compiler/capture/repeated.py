"""Layers that a model repeats are traced once: export's time grows with their kinds, not their number.

In: a model about to be exported. Out: its program. While the model is traced, later layers of a kind give one
op in place of their code, if they are called with what the first was called with, but for the hidden states.
Then each such op is replaced by the first layer's nodes, with the layer's own parameters. Layers are of one
kind if their modules have the same classes, attributes, shapes and buffers. Attributes that hold a layer's
position are watched: where the first layer computes with its position, all layers are traced. Independent of
models and of Graph IR.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import py_sym_types
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

#: values of attributes that are compared by what they are; anything else must be the same object
_VALUES = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
#: what PyTorch keeps in every module: compared as parameters, buffers and children, or irrelevant to it
_KEPT_BY_TORCH = frozenset(vars(nn.Module()))


class NotRepeatedError(Exception):
    """A layer taken for a repetition does something that only its own trace shows: trace them all."""


def export_repeated(model: nn.Module, export: Callable[[], Any]) -> Any:
    """What `export()` makes of the model, from one trace of each kind of layer, or of all where that cannot
    be."""
    kinds = kinds_of(model)
    try:
        with _traced_once(model, kinds):
            program = export()
        _expand(program, kinds)
    except NotRepeatedError:
        return export()
    except Exception:
        if not any(k.watched for k in kinds):
            raise
        return export()  # a position that is not an integer may have been the reason
    return program


# ------------------------------------------------------------------ the ops
def _enter(x: torch.Tensor, others: Sequence[torch.Tensor], kind: int) -> torch.Tensor:
    raise RuntimeError("tilewright::enter_layer marks a place in an exported program and cannot be run")


def _leave(x: torch.Tensor, kind: int) -> torch.Tensor:
    raise RuntimeError("tilewright::leave_layer marks a place in an exported program and cannot be run")


def _repeat(x: torch.Tensor, others: Sequence[torch.Tensor], kind: int, layer: int) -> torch.Tensor:
    raise RuntimeError("tilewright::repeat_layer represents a layer in an exported program and cannot be run")


enter = torch.library.custom_op("tilewright::enter_layer", _enter, mutates_args=())
leave = torch.library.custom_op("tilewright::leave_layer", _leave, mutates_args=())
repeat = torch.library.custom_op("tilewright::repeat_layer", _repeat, mutates_args=())
enter.register_fake(lambda x, others, kind: x.new_empty(x.shape))
leave.register_fake(lambda x, kind: x.new_empty(x.shape))
repeat.register_fake(lambda x, others, kind, layer: x.new_empty(x.shape))


# ------------------------------------------------------------------ kinds of layers
@dataclass
class _Call:
    """How the first layer of a kind was called in the pass of export under way, and what it returned."""

    args: Sequence[Any]
    spec: Any
    result: Any = None


@dataclass
class Kind:
    """Layers that differ in their parameters alone: their positions in `path`, a list of modules.
    `positions`: attributes that hold a layer's position, as (path in the layer, name)."""

    path: str
    layers: tuple[int, ...]
    positions: tuple[tuple[str, str], ...]
    call: _Call | None = None
    watched: list[_Position] = field(default_factory=list)

    def prefix(self, layer: int) -> str:
        return f"{self.path}.{layer}."


def kinds_of(model: nn.Module) -> list[Kind]:
    """Kinds with more than one layer, of every list of modules that lies in no other list."""
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1}
    outer = {n: m for n, m in lists.items() if not any(n.startswith(f"{o}.") for o in lists)}
    shared = _shared_modules(model)
    return [k for path, layers in outer.items() for k in _kinds(shared, path, layers)]


def _kinds(shared: set[int], path: str, layers: nn.ModuleList) -> Iterator[Kind]:
    positions = tuple(_positions(layers))
    groups: dict[object, list[int]] = {}
    for n, layer in enumerate(layers):
        if not any(id(m) in shared for m in layer.modules()):
            groups.setdefault(_signature(layer, frozenset(positions)), []).append(n)
    for members in groups.values():
        if len(members) > 1:
            yield Kind(path, tuple(members), positions)


def _shared_modules(model: nn.Module) -> set[int]:
    """Modules that the model reaches by two paths."""
    seen: dict[int, int] = {}
    for _, m in model.named_modules(remove_duplicate=False):
        seen[id(m)] = seen.get(id(m), 0) + 1
    return {i for i, count in seen.items() if count > 1}


def _positions(layers: nn.ModuleList) -> Iterator[tuple[str, str]]:
    """Attributes that hold, in every layer that has them, the layer's place in the list."""
    found: dict[tuple[str, str], list[bool]] = {}
    for n, layer in enumerate(layers):
        for path, m in layer.named_modules():
            for name, value in vars(m).items():
                found.setdefault((path, name), []).append(type(value) is int and value == n)
    for key, same in found.items():
        if len(same) > 1 and all(same):
            yield key


def _signature(layer: nn.Module, positions: frozenset[tuple[str, str]]) -> object:
    """All that decides what a layer computes, but for the values of its parameters and its position."""
    parts: list[object] = []
    for path, m in layer.named_modules():
        own = [
            (k, _attribute(v)) for k, v in sorted(vars(m).items())
            if k not in _KEPT_BY_TORCH and (path, k) not in positions
        ]  # fmt: skip
        tensors = [
            (k, _tensor(t, fixed=k in m._non_persistent_buffers_set))
            for k, t in (*m._parameters.items(), *m._buffers.items())
        ]
        hooks = tuple(map(id, (*m._forward_hooks.values(), *m._forward_pre_hooks.values())))
        parts.append((path, type(m), m.training, tuple(own), tuple(tensors), hooks))
    return tuple(parts)


def _attribute(value: object) -> object:
    if isinstance(value, _VALUES):
        return (type(value), repr(value))
    if type(value) in (tuple, list):
        return (type(value), tuple(map(_attribute, value)))  # type: ignore[call-overload]
    return id(value)


def _tensor(t: torch.Tensor | None, fixed: bool) -> object:
    if t is None:
        return None
    return (tuple(t.shape), t.dtype, _digest(t) if fixed else None)


def _digest(t: torch.Tensor) -> bytes:
    return hashlib.sha256(t.detach().reshape(-1).contiguous().view(torch.uint8).numpy()).digest()


# ------------------------------------------------------------------ positions that are watched
class _Position:
    """A layer's position in place of the integer. It is handed through without a trace; whoever computes,
    compares or looks something up with it is `seen`."""

    def __init__(self, value: int) -> None:
        self.value, self.seen = value, False


def _watching(name: str) -> Callable[..., Any]:
    def method(self: _Position, *args: Any) -> Any:
        self.seen = True
        return getattr(self.value, name)(*(a.value if isinstance(a, _Position) else a for a in args))

    return method


#: of the methods of integers, those that every object has too
_OF_OBJECTS = ("eq", "ne", "lt", "le", "gt", "ge", "or", "ror", "hash", "repr", "str", "format")
for _name in (*(set(dir(int)) - set(dir(type))), *(f"__{n}__" for n in _OF_OBJECTS)):
    if callable(getattr(int, _name)):
        setattr(_Position, _name, _watching(_name))


# ------------------------------------------------------------------ tracing
@contextmanager
def _traced_once(model: nn.Module, kinds: Sequence[Kind]) -> Iterator[None]:
    """While open, later layers of each kind are ops in place of their code."""
    undo: list[Callable[[], None]] = []
    try:
        for number, kind in enumerate(kinds):
            for layer in kind.layers:
                undo += _replace(model.get_submodule(f"{kind.path}.{layer}"), kind, number, layer)
        yield
    finally:
        for step in reversed(undo):
            step()


def _replace(module: nn.Module, kind: Kind, number: int, layer: int) -> Iterator[Callable[[], None]]:
    original = module.forward
    first = layer == kind.layers[0]

    def forward(*args: Any, **kwargs: Any) -> Any:
        if first:
            return _first(kind, number, original, args, kwargs)
        out = _repeated(kind, number, layer, args, kwargs)
        return original(*args, **kwargs) if out is None else out

    module.forward = forward
    yield partial(delattr, module, "forward")
    if first:
        for path, name in kind.positions:
            owner = module.get_submodule(path)
            watched = _Position(vars(owner)[name])
            kind.watched.append(watched)
            setattr(owner, name, watched)
            yield partial(setattr, owner, name, watched.value)


def _first(kind: Kind, number: int, original: Any, args: Any, kwargs: Any) -> Any:
    kind.call = None
    if not args or not isinstance(args[0], torch.Tensor):
        return original(*args, **kwargs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    x = enter(args[0], _others(leaves), number)
    out = original(x, *args[1:], **kwargs)
    rest = out[1:] if isinstance(out, tuple) else ()
    y = out[0] if isinstance(out, tuple) and out else out
    alike = isinstance(y, torch.Tensor) and y.dtype == x.dtype and _same_sizes(y, x)
    if not alike or any(r is not None for r in rest) or any(w.seen for w in kind.watched):
        return out
    kind.call = _Call(leaves, spec, out)
    y = leave(y, number)
    return (y, *rest) if isinstance(out, tuple) else y


def _repeated(kind: Kind, number: int, layer: int, args: Any, kwargs: Any) -> Any:
    """The result of a later layer, or None if it must be traced."""
    call = kind.call
    leaves, spec = pytree.tree_flatten((args, kwargs))
    if call is None or spec != call.spec or not isinstance(leaves[0], torch.Tensor):
        return None
    x = call.args[0]
    if leaves[0].dtype != x.dtype or not _same_sizes(leaves[0], x):
        return None
    if not all(map(_same, leaves[1:], call.args[1:])):
        return None
    y = repeat(leaves[0], _others(leaves), number, layer)
    return (y, *call.result[1:]) if isinstance(call.result, tuple) else y


def _others(leaves: Sequence[Any]) -> list[torch.Tensor]:
    return [a for a in leaves[1:] if isinstance(a, torch.Tensor)]


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, _VALUES) and a == b)


def _same_sizes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Without a guard: equal numbers, or equal expressions."""
    return [str(n) for n in a.shape] == [str(n) for n in b.shape]


# ------------------------------------------------------------------ the program
def _expand(ep: Any, kinds: Sequence[Kind]) -> None:
    """Put the nodes of every layer in place, as if it had been traced. NotRepeatedError if the trace of the
    first layer is not what another layer would have given."""
    graph = ep.graph_module.graph
    entries, exits = (_marks(graph, op) for op in ("enter_layer", "leave_layer"))
    bodies = {n: _body(graph, entries[n], exits[n]) for n in exits}
    stored, constants = _stored(ep), set(ep.graph_signature.inputs_to_lifted_tensor_constants.values())
    for node in list(graph.nodes):
        if _target(node) == "repeat_layer":
            x, others, number, layer = node.args
            if others != entries[number].args[1]:
                raise NotRepeatedError(f"{kinds[number].prefix(layer)}: its arguments have changed")
            names = (kinds[number].prefix(kinds[number].layers[0]), kinds[number].prefix(layer))
            values = {entries[number]: x, **_own_values(stored, constants, *names)}
            out = _copied(node, bodies[number], values, exits[number].args[0], names)
            node.replace_all_uses_with(out)
            graph.erase_node(node)
    for mark in (*exits.values(), *entries.values()):
        mark.replace_all_uses_with(mark.args[0])
        graph.erase_node(mark)


def _target(node: Any) -> str:
    space, _, rest = str(node.target).partition(".")
    return rest.partition(".")[0] if node.op == "call_function" and space == "tilewright" else ""


def _marks(graph: Any, name: str) -> dict[int, Any]:
    """Of each kind. A kind whose layers were all traced has a mark at one end or none."""
    marks: dict[int, Any] = {}
    for node in graph.nodes:
        if _target(node) == name and marks.setdefault(node.args[-1], node) is not node:
            raise NotRepeatedError("a layer that is called twice")
    return marks


def _body(graph: Any, entry: Any, exit_: Any) -> list[Any]:
    nodes = list(graph.nodes)
    body = nodes[nodes.index(entry) + 1 : nodes.index(exit_)]
    inside = {entry, exit_, *body}
    for node in body:
        if entry.args[0] in node.all_input_nodes or not set(node.users) <= inside:
            raise NotRepeatedError(f"{node}: reaches around the layer's arguments and result")
        if _decided_by_data(node.meta.get("val")):
            raise NotRepeatedError(f"{node}: sizes that depend on data")
    return body


def _decided_by_data(value: Any) -> bool:
    """Whether a node's result is, or has, a size that only data decides."""
    leaves = pytree.tree_leaves(value)
    return any(free_unbacked_symbols(v) for v in leaves if isinstance(v, (torch.Tensor, *py_sym_types)))


def _stored(ep: Any) -> dict[str, Any]:
    """Placeholders of parameters, buffers and constants by their names."""
    nodes = {n.name: n for n in ep.graph_module.graph.nodes if n.op == "placeholder"}
    return {
        str(s.target): nodes[s.arg.name]
        for s in ep.graph_signature.input_specs
        if s.target is not None and s.arg.name in nodes
    }


def _own_values(stored: dict[str, Any], constants: set[str], first: str, own: str) -> dict[Any, Any]:
    """What a layer reads in place of the first layer's parameters and buffers. Constants that the code makes
    are the same for both."""
    found: dict[Any, Any] = {}
    for name, node in stored.items():
        if name.startswith(first) and name not in constants:
            other = stored.get(own + name.removeprefix(first))
            if other is None:
                raise NotRepeatedError(f"{own}: has nothing in place of {name}")
            found[node] = other
    return found


def _copied(at: Any, body: Sequence[Any], values: dict[Any, Any], result: Any, names: tuple[str, str]) -> Any:
    """Copies of `body` before the node `at`, reading other `values`; the copy of `result`."""
    with at.graph.inserting_before(at):
        for node in body:
            new = at.graph.node_copy(node, lambda n: values.get(n, n))
            new.meta = _moved(node.meta, *names)
            values[node] = new
    return values.get(result, result)


def _moved(meta: dict[str, Any], first: str, own: str) -> dict[str, Any]:
    """A node's notes, at the other layer's path."""
    stack = {
        key: (f"{path}.".replace(first, own, 1)[:-1], kind)
        for key, (path, kind) in (meta.get("nn_module_stack") or {}).items()
    }
    return {**meta, "nn_module_stack": stack}
