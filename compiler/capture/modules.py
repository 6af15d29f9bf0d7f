"""`capture_module`: any `nn.Module` or exported program as Graph IR, under its own input and output names.

In: the module with example inputs (as `torch.export` takes them), or a program. Out: a module with one graph
@forward, and the arrays its weights name. Batch and length become symbols where `dynamic_shapes` says so.
Independent of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from tilewright.capture.importer import import_program
from tilewright.capture.memory import MemoryWeights
from tilewright.capture.structure import Described, describe
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Module, Stored, WeightExpr, walk_expr
from tilewright.ir.types import SymbolRange, TensorType

Array = NDArray[np.generic]
#: names of symbols by the axis they are first met at
_AXIS_NAMES = ("B", "S")
#: names that kernels and steps give their own sizes
RESERVED = frozenset({"M", "Q", "slots"})


def capture_module(
    module: torch.nn.Module | ExportedProgram, example_inputs: Sequence[object] | Mapping[str,
    object] | None = None,
    dynamic_shapes: Any = None,
) -> tuple[Module, dict[str, Array]]:  # fmt: skip
    """The module's graph @forward and its weights by name.

    `example_inputs`: a tuple, or a mapping of keyword arguments. `dynamic_shapes`: as for
    `torch.export.export`. Outputs are flattened: the fields of a dict or ModelOutput by name, a tuple as
    output_0, output_1, …, one tensor as output; `inputs` and `outputs` of the module's metadata keep their
    structure (`tilewright.runtime.structure`). Raises RefusedError if PyTorch cannot trace it,
    UnsupportedError listing unsupported operators."""
    program = exported(module, example_inputs, dynamic_shapes)
    tensors = {**program.state_dict, **program.constants}
    weights = MemoryWeights(tensors, program.graph_signature.parameters)
    captured = import_exported(program, weights, dynamic_shapes)
    kept = {e.key for w in captured.weights for e in walk_expr(w.source) if isinstance(e, Stored)}
    return captured, {k: v for k, v in weights.arrays.items() if k in kept}


class WeightsOf(Protocol):
    """What the parameters and constants of a program become: names, types and sources."""

    def name(self, name: str) -> str: ...
    def __call__(self, name: str, x: Any) -> tuple[TensorType, WeightExpr]: ...


def import_exported(
    program: ExportedProgram, weights: WeightsOf, dynamic_shapes: Any, graph: str = "forward"
) -> Module:
    """The program as a module with one graph, whose metadata describes its inputs and results. Raises
    UnsupportedError listing unsupported operators."""
    about = describe(program)
    names, ranges = _symbols(program, about, dynamic_shapes)
    return import_program(
        program, graph_name=graph, input_names=[n for _, n in about.inputs],
        result_names=list(about.results.values()),
        symbols=ranges, dims=names, weight=weights, weight_name=weights.name, checks=True,
        meta={"kind": "plain", **about.meta},
    )  # fmt: skip


# ------------------------------------------------------------------ tracing
def exported(module: object, example_inputs: Any = None, dynamic_shapes: Any = None) -> ExportedProgram:
    """An exported program as it is, a module traced with its example inputs; RefusedError for anything
    else."""
    if isinstance(module, ExportedProgram):
        return module
    if not isinstance(module, torch.nn.Module):
        hint = "pass a checkpoint directory, a torch.nn.Module, or the result of torch.export.export"
        raise RefusedError(f"expected a model, got {type(module).__name__}", "compile", hint)
    return export(module, example_inputs, dynamic_shapes)


def containers_of(program: ExportedProgram) -> Callable[[Sequence[object]], object] | None:
    """What puts the leaves of results back into the module's own containers."""
    spec = program.call_spec.out_spec
    return None if spec is None else lambda leaves: pytree.tree_unflatten(list(leaves), spec)


def export(module: torch.nn.Module, example_inputs: Any, dynamic_shapes: Any) -> ExportedProgram:
    """The module traced in evaluation mode, its modes restored afterwards."""
    if example_inputs is None:
        hint = "pass example_inputs: a tuple, or a dict of keyword arguments"
        raise RefusedError(
            "a module is captured by running it, which needs example inputs",
            type(module).__name__,
            hint,
        )
    args, kwargs = (
        ((), dict(example_inputs)) if isinstance(example_inputs, Mapping) else (tuple(example_inputs), {})
    )
    args, kwargs = _apart((args, kwargs))
    _check_sizes(args, kwargs, dynamic_shapes)
    with _evaluating(module), torch.no_grad():
        try:
            return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes)
        except Exception as e:
            text = "\n  ".join(line for line in str(e).strip().splitlines() if line.strip())
            hint = (
                "torch.export must be able to trace the model: no branches on tensor values, and no "
                "fixed sizes where dynamic ones are declared"
            )
            message = f"PyTorch cannot trace the model: {type(e).__name__}: {text[:2000]}"
            raise RefusedError(message, type(module).__name__, hint) from e


def _apart(inputs: Any) -> Any:
    """A tensor that is given twice is two inputs: PyTorch would trace both as the last of them."""
    seen: set[int] = set()

    def one(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        again = id(x) in seen
        seen.add(id(x))
        return x.clone() if again else x

    return pytree.tree_map(one, inputs)


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def _check_sizes(args: Sequence[Any], kwargs: Mapping[str, Any], dynamic: Any) -> None:
    """A dynamic axis of size 1 in the example would be taken for a constant."""
    given = [*kwargs.items()] if kwargs else [(f"number {n}", a) for n, a in enumerate(args)]
    listed = dynamic if isinstance(dynamic, list | tuple) else None
    for n, (name, x) in enumerate(given):
        spec = (
            dynamic.get(name)
            if isinstance(dynamic, Mapping)
            else listed[n]
            if listed and n < len(listed)
            else None
        )
        for axis, d in _axes(spec):
            if (
                isinstance(x, torch.Tensor)
                and axis < x.ndim
                and x.shape[axis] == 1
                and not isinstance(d, int | None)
            ):
                hint = (
                    "use examples of size 2 or more on dynamic axes; the compiled model then takes 1 "
                    "too if its range does"
                )
                raise RefusedError(
                    f"example input {name} has size 1 on axis {axis}, which is declared dynamic", "", hint
                )


def _axes(spec: Any) -> list[tuple[int, Any]]:
    if isinstance(spec, Mapping):
        return [(k, v) for k, v in spec.items() if isinstance(k, int)]
    return list(enumerate(spec)) if isinstance(spec, list | tuple) else []


# ------------------------------------------------------------------ names
def _symbols(
    ep: ExportedProgram, about: Described, dynamic: Any
) -> tuple[dict[str, str], dict[str, SymbolRange]]:
    """PyTorch's symbols to our names, and the range of each of ours."""
    wanted = _declared(about, dynamic)
    names: dict[str, str] = {}
    for node, _ in about.inputs:
        for axis, d in enumerate(node.meta["val"].shape):
            for s in () if isinstance(d, int) else sorted(d.node.expr.free_symbols, key=str):
                if str(s) not in names:
                    names[str(s)] = _free_name(wanted.get((node.name, axis)), axis, set(names.values()))
    limits = {str(s): r for s, r in ep.range_constraints.items()}
    return names, {ours: _range(limits.get(theirs)) for theirs, ours in names.items()}


def _free_name(wanted: str | None, axis: int, taken: set[str]) -> str:
    first = wanted or (_AXIS_NAMES[axis] if axis < len(_AXIS_NAMES) else f"D{axis}")
    return next(n for n in (first, *(f"{first}{k}" for k in range(2, 99))) if n not in taken | RESERVED)


def _declared(about: Described, dynamic: Any) -> dict[tuple[str, int], str]:
    """Names of `Dim("batch")` by input and axis, for inputs that stand at the top."""
    out: dict[tuple[str, int], str] = {}
    for n, (node, name) in enumerate(about.inputs):
        listed = dynamic if isinstance(dynamic, list | tuple) else []
        spec = dynamic.get(name) if isinstance(dynamic, Mapping) else listed[n] if n < len(listed) else None
        for axis, d in _axes(spec):
            label = getattr(d, "__name__", "")
            if label.isidentifier():
                out[node.name, axis] = label
    return out


def _range(r: Any) -> SymbolRange:
    bounds: list[Any] = [getattr(r, "lower", None), getattr(r, "upper", None)]
    lo, hi = (int(b) if getattr(b, "is_Integer", False) else None for b in bounds)
    return SymbolRange(max(0, lo or 0), None if hi is None or hi >= 2**31 else hi)
