"""From a graph that PyTorch captured to a function that runs it.

In: the graph as `torch.compile` hands it over, its inputs, options. Out: a function. AOT autograd makes the
graph functional and takes care of gradients, aliases and arguments that are modified; each of the graphs that
it asks for is split into compiled parts and operators that stay in PyTorch.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.fx import GraphModule, Node

from tilewright.backends.base import BuildError
from tilewright.capture.aten_recurrent import keep_recurrent
from tilewright.capture.decompositions import decompositions
from tilewright.dynamo.importing import Known
from tilewright.dynamo.options import Options
from tilewright.dynamo.partition import Split
from tilewright.dynamo.report import GraphReport

LOG = logging.getLogger("tilewright")
#: is told of every graph that is compiled
Told = Callable[[GraphReport], None]


def compile_captured(
    gm: GraphModule, example_inputs: Sequence[Any], options: Options, told: Told | None = None
) -> Callable[..., Any]:
    """A function of the graph's inputs. `told`: of each graph that AOT autograd makes of it; without it, one
    line is logged where operators stay in PyTorch. Raises what `Split.run` raises."""
    names = _names([n for n in gm.graph.nodes if n.op == "placeholder"])
    inputs = list(example_inputs)
    keep_recurrent(gm)

    def compiler(kind: str) -> Callable[..., Any]:
        def compile_one(graph: GraphModule, fakes: Sequence[Any]) -> Callable[..., Any]:
            known = _known(graph, inputs, names) if kind == "inference" and options.freeze else {}
            with unset_fake_temporarily():
                return _compiled(graph, known, options, kind, told or _logged(options))

        return compile_one

    made: Callable[..., Any] = aot_module_simplified(
        gm,
        inputs,
        fw_compiler=compiler("forward"),
        bw_compiler=compiler("backward"),
        inference_compiler=compiler("inference"),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=decompositions({}),
    )
    return made


def _compiled(
    graph: GraphModule, known: Mapping[str, Known], options: Options, kind: str, told: Told
) -> Callable[..., Any]:
    split = Split(graph, known, options)
    try:
        function = split.run()
    except BuildError as why:
        if options.strict:
            raise
        LOG.warning("tilewright: everything stays in PyTorch: %s", why)
        return _boxed(graph)
    told(split.report(kind))
    return _boxed(function)


def _logged(options: Options) -> Told:
    """Says a line for each graph of which something is left, for all under the option `report`."""

    def told(report: GraphReport) -> None:
        if report.left or options.report:
            LOG.warning(report.line)

    return told


def _boxed(function: Callable[..., Any]) -> Callable[..., Any]:
    boxed: Callable[..., Any] = make_boxed_func(function)
    return boxed


# ------------------------------------------------------------------ parameters
def _known(graph: GraphModule, inputs: Sequence[Any], names: Sequence[str]) -> dict[str, Known]:
    """Placeholders that are parameters or buffers, by name. None where AOT autograd's arguments are not those
    of the captured graph, one by one."""
    holders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    context = TracingContext.try_get()
    facts = context.fw_metadata if context is not None else None
    if facts is None or len(holders) != len(inputs) or len(names) != len(inputs):
        return {}
    found: dict[str, Known] = {}
    for i in facts.static_input_indices:
        if i < len(inputs) and _same(holders[i], inputs[i]):
            found[holders[i].name] = Known(names[i], inputs[i])
    return found


def _same(holder: Node, x: Any) -> bool:
    """A real tensor of what the placeholder stands for, which kernels can read, and whose changes in place
    PyTorch counts: tensors made in inference mode are passed like arguments."""
    fake = holder.meta.get("val")
    plain = isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor)
    return (
        plain
        and type(x) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
        and isinstance(fake, torch.Tensor)
        and fake.dtype == x.dtype
        and tuple(fake.shape) == tuple(x.shape)
        and x.device.type == "cpu"
        and not x.is_inference()
    )


_KEYS = re.compile(r"_(?:modules|parameters|buffers|dict_?_)\['([^']+)'\]")


def _names(holders: Sequence[Node]) -> list[str]:
    """A name for each placeholder: `layers.0.weight` of a parameter, from where Dynamo found it. Parameters
    of modules that a module holds in other ways may have one path; the placeholders' own names differ."""
    paths = [_path(n) for n in holders]
    several = {p for p, count in Counter(paths).items() if count > 1}
    return [n.name if p in several else p for n, p in zip(holders, paths, strict=True)]


def _path(node: Node) -> str:
    arg = node.meta.get("grapharg")
    source = getattr(arg, "source", None)
    text = source.name if source is not None and isinstance(source.name, str) else ""
    keys = _KEYS.findall(text)
    return ".".join(keys) if keys else node.name
