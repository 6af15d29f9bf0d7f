"""The structure of a plain module's inputs and results: containers, numbers and None around tensors.

In: the description in an artifact's manifest, a list for each node: `["tensor", "x"]`, `["tuple", [node,
…]]`, `["dict", [[key, node], …]]`. Out: tensors by name from what a caller passes, and results under the
module's own structure. Containers of other classes come back as the nearest of Python's: a namedtuple as one
of the same name and fields, other objects as dicts.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tilewright.runtime.errors import ArtifactError, SessionError

#: deeper structures are a damaged manifest
DEEPEST = 60
#: Python numbers that a module computes from sizes: results without axes, given back as numbers
NUMBERS = {"int": int, "float": float, "bool": bool}
_SEQUENCES = {"tuple": tuple, "list": list}


@dataclass(frozen=True)
class Node:
    """`kind`: tensor, int, float, bool (all of the tensor `name`), value (the constant `value`), tuple, list,
    dict, or named and object, whose class is called `name`. `children`: (key, node), in order."""

    kind: str
    name: str = ""
    value: Any = None
    children: tuple[tuple[Any, Node], ...] = ()

    def leaves(self) -> Iterator[Node]:
        """Tensors, numbers and constants in order."""
        if not self.children and (self.kind in NUMBERS or self.kind in ("tensor", "value")):
            yield self
        for _, child in self.children:
            yield from child.leaves()

    def to_json(self) -> list[Any]:
        """As `parse` reads it."""
        if self.kind == "value":
            return ["value", _json_value(self.value)]
        if self.kind in _SEQUENCES:
            return [self.kind, [n.to_json() for _, n in self.children]]
        if self.kind == "dict":
            return ["dict", [[_json_value(k), n.to_json()] for k, n in self.children]]
        if self.kind in ("named", "object"):
            return [self.kind, self.name, [[k, n.to_json()] for k, n in self.children]]
        return [self.kind, self.name]

    def __str__(self) -> str:
        """As Python writes it, tensors by their names: `{'a': a, 'b': (x, None)}`."""
        parts = [str(n) for _, n in self.children]
        if self.kind == "value":
            return repr(self.value)
        if self.kind == "list":
            return f"[{', '.join(parts)}]"
        if self.kind == "tuple":
            return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
        if self.kind == "dict":
            return "{" + ", ".join(f"{k!r}: {n}" for k, n in self.children) + "}"
        if self.kind in ("named", "object"):
            return f"{self.name}({', '.join(f'{k}={n}' for k, n in self.children)})"
        return self.name if self.kind == "tensor" else f"{self.kind}({self.name})"


def described(meta: Mapping[str, object]) -> dict[str, str]:
    """The structures among a module's to_json, as users read them."""
    inputs = parse(["dict", meta.get("inputs", [])], "manifest.json: meta.inputs").children
    return {
        "inputs": ", ".join(name if str(node) == name else f"{name}={node}" for name, node in inputs),
        "outputs": str(parse(meta.get("outputs", ["value", None]), "manifest.json: meta.outputs")),
    }


def _json_value(x: Any) -> Any:
    """Numbers that JSON or the text of graphs cannot hold travel as text."""
    odd = (
        (isinstance(x, float) and x in (float("inf"), -float("inf")))
        or x != x
        or (type(x) is int and abs(x) >= 1 << 62)
    )
    return [type(x).__name__, repr(x)] if odd else x


# ------------------------------------------------------------------ reading a description
def parse(raw: object, where: str, depth: int = 0) -> Node:
    """Raises ArtifactError if `raw` is not a description."""
    match raw:
        case [("tensor" | "int" | "float" | "bool") as kind, str(name)]:
            return Node(kind, name)
        case ["value", value]:
            return Node("value", value=_number(value, where))
        case [("tuple" | "list") as kind, list() | tuple() as items] if depth < DEEPEST:
            return Node(kind, children=tuple((n, parse(x, where, depth + 1)) for n, x in enumerate(items)))
        case ["dict", list() | tuple() as items] if depth < DEEPEST:
            return Node("dict", children=_pairs(items, where, depth))
        case [("named" | "object") as kind, str(name), list() | tuple() as items] if depth < DEEPEST:
            pairs = _pairs(items, where, depth)
            if name.isidentifier() and all(isinstance(k, str) and k.isidentifier() for k, _ in pairs):
                return Node(kind, name, children=pairs)
    raise _damaged(raw, where)


def _damaged(raw: object, where: str) -> ArtifactError:
    return ArtifactError(
        f"not a structure: {raw!r:.60}",
        where,
        "the artifact is damaged or was edited; compile the model again",
    )


def _pairs(items: Sequence[object], where: str, depth: int) -> tuple[tuple[Any, Node], ...]:
    out: dict[Any, Node] = {}
    for item in items:
        match item:
            case [key, node]:
                out[_number(key, where)] = parse(node, where, depth + 1)
            case _:
                raise _damaged(item, where)
    return tuple(out.items())


def _number(x: object, where: str) -> Any:
    match x:
        case ["int", str(text)] if text.lstrip("-").isdigit() and len(text) < 4000:
            return int(text)
        case ["float", "inf" | "-inf" | "nan" as text]:
            return float(text)
        case None | bool() | int() | float() | str():
            return x
    raise _damaged(x, where)


@dataclass(frozen=True)
class Structure:
    """`inputs`: the parameters that `forward` was called with, in order; `outputs`: what it gave back."""

    inputs: tuple[tuple[str, Node], ...]
    outputs: Node

    @staticmethod
    def of(meta: Mapping[str, object], inputs: Sequence[str], outputs: Sequence[str]) -> Structure:
        """As the manifest says; without a description, tensors alone: one result as itself, several as a
        dict."""
        if "inputs" not in meta or "outputs" not in meta:
            plain, results = (tuple((n, Node("tensor", n)) for n in names) for names in (inputs, outputs))
            return Structure(plain, results[0][1] if len(results) == 1 else Node("dict", children=results))
        taken = parse(["dict", meta["inputs"]], "manifest.json: meta.inputs").children
        made = Structure(taken, parse(meta["outputs"], "manifest.json: meta.outputs"))
        for kind, named, real in (
            ("inputs", [n for _, n in taken], inputs),
            ("outputs", [made.outputs], outputs),
        ):
            tensors = {leaf.name for node in named for leaf in node.leaves() if leaf.kind != "value"}
            if tensors != set(real):
                raise ArtifactError(
                    f"meta.{kind} and the graph disagree", "manifest.json", "compile the model again"
                )
        return made

    # -------------------------------------------------------------- inputs
    def tensors(self, args: Sequence[object], named: Mapping[str, object]) -> dict[str, Any]:
        """What each tensor input receives. SessionError naming what is missing, unknown or of another
        structure."""
        names = [n for n, _ in self.inputs]
        given = {**dict(zip(names, args, strict=False)), **named}
        needed = {n for n, node in self.inputs if node.kind != "value"}
        if (
            len(args) > len(names)
            or not needed <= set(given) <= set(names)
            or set(names[: len(args)]) & set(named)
        ):
            got = f"{len(args)} in order and {', '.join(named) or 'none'} by name"
            raise SessionError(f"expected the inputs {', '.join(names) or 'none'}; got {got}", "model")
        out: dict[str, Any] = {}
        for name, node in self.inputs:
            if name in given:
                _take(node, given[name], f"input {name}", out)
        return out

    # -------------------------------------------------------------- outputs
    def leaves(self, results: Mapping[str, Any]) -> list[Any]:
        """The results' tensors, numbers and constants in order."""
        return [_leaf(n, results) for n in self.outputs.leaves()]

    def build(self, results: Mapping[str, Any]) -> Any:
        """Results under the module's structure."""
        return _build(self.outputs, results)


def _take(node: Node, x: Any, where: str, out: dict[str, Any]) -> None:
    if node.kind == "tensor":
        out[node.name] = x
    elif node.kind == "value":
        if not _same(node.value, x):
            hint = "numbers are compiled in as constants: compile again for this value, or pass a tensor"
            raise SessionError(f"compiled for {node.value!r}, got {_short(x)}", where, hint)
    else:
        for key, child in node.children:
            at = f"{where}.{key}" if node.kind in ("named", "object") else f"{where}[{key!r}]"
            _take(child, _part(node, key, x, where), at, out)


def _part(node: Node, key: Any, x: Any, where: str) -> Any:
    """The child of `x` at `key`, once `x` is known to have the children that it should."""
    keys = [k for k, _ in node.children]
    if node.kind in ("dict", "object") and isinstance(x, Mapping) and set(x) == set(keys):
        return x[key]
    if node.kind in ("tuple", "list", "named") and isinstance(x, tuple | list) and len(x) == len(keys):
        return x[keys.index(key)]
    if node.kind == "object" and not isinstance(x, Mapping) and all(hasattr(x, k) for k in keys):
        return getattr(x, key)
    raise SessionError(f"expected {_wanted(node, keys)}, got {_short(x)}", where)


def _wanted(node: Node, keys: Sequence[Any]) -> str:
    if node.kind in ("dict", "object"):
        return f"a dict of {', '.join(map(repr, keys)) or 'nothing'}"
    return f"a {'list' if node.kind == 'list' else 'tuple'} of {len(keys)}"


def _same(want: Any, have: Any) -> bool:
    if isinstance(want, bool) or isinstance(have, bool) or want is None or isinstance(want, str):
        return type(want) is type(have) and bool(want == have)
    return isinstance(have, int | float) and (have == want or (want != want and have != have))


def _short(x: Any) -> str:
    """A value as a message shows it: constants whole, containers by what they hold."""
    if isinstance(x, Mapping):
        return f"a dict of {', '.join(map(repr, x)) or 'nothing'}"
    if isinstance(x, list | tuple):
        return f"a {type(x).__name__} of {len(x)}"
    return f"{x!r:.60}" if x is None or isinstance(x, str | int | float | bool) else f"{type(x).__name__}"


def _leaf(node: Node, results: Mapping[str, Any]) -> Any:
    if node.kind == "value":
        return node.value
    return results[node.name] if node.kind == "tensor" else NUMBERS[node.kind](results[node.name].item())


def _build(node: Node, results: Mapping[str, Any]) -> Any:
    if node.kind in ("dict", "object"):
        return {k: _build(n, results) for k, n in node.children}
    if node.kind in _SEQUENCES:
        return _SEQUENCES[node.kind](_build(n, results) for _, n in node.children)
    if node.kind == "named":
        return _named(node.name, tuple(k for k, _ in node.children))(
            *(_build(n, results) for _, n in node.children)
        )
    return _leaf(node, results)


@lru_cache(maxsize=64)
def _named(name: str, fields: tuple[str, ...]) -> Any:
    try:
        return namedtuple(name, fields)
    except ValueError as e:
        hint = "compile the model again"
        raise ArtifactError(
            f"not a tuple of named fields: {e}", "manifest.json: meta.outputs", hint
        ) from None
