"""`tilewright.explain(model, *inputs)`: what the backend of `torch.compile` makes of a model, text and data.

In: a model and inputs, which it is called with once. Out: graph breaks, operators, parts, kernels, and which
operators stay in PyTorch and why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.dynamo.report import GraphReport


@dataclass(frozen=True)
class Explanation:
    """`graphs`: those that PyTorch captured, in order; `breaks`: why it ended a graph, and how often."""

    graphs: tuple[GraphReport, ...]
    breaks: Mapping[str, int]

    def __str__(self) -> str:
        return "\n".join((*self._graphs(), *self._breaks()))

    def _graphs(self) -> list[str]:
        lines = [f"{len(self.graphs)} graph{'s' if len(self.graphs) != 1 else ''}"]
        for n, g in enumerate(self.graphs):
            lines.append(f"graph {n} ({g.kind}): {g.line.removeprefix('tilewright: ')}")
            lines += [
                f"  part {k}: {p.ops} nodes, {p.kernels} kernels, {p.weight_bytes:,} bytes of weights, "
                f"compiled in {p.seconds:.1f} s"
                for k, p in enumerate(g.partitions)
            ]
            lines += [f"  in PyTorch: {x.text}: {x.why}" for x in g.left]
        return lines

    def _breaks(self) -> list[str]:
        if not self.breaks:
            return ["no graph breaks"]
        return ["graph breaks:", *(f"  ×{count} {why.strip()}" for why, count in self.breaks.items())]

    def to_dict(self) -> dict[str, object]:
        """Plain data."""
        return {"graphs": [g.to_dict() for g in self.graphs], "breaks": dict(self.breaks)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)


def explain(
    model: Callable[..., Any], *inputs: Any, options: Mapping[str, object] | None = None,
    dynamic: bool | None = None, **named: Any,
) -> Explanation:  # fmt: skip
    """Call `torch.compile(model, backend="tilewright", options=options, dynamic=dynamic)` once with these
    inputs, under the present grad mode, and say what became of it. Raises what the call raises."""
    import torch
    from torch._dynamo.utils import counters

    from tilewright.dynamo.compiling import compile_captured
    from tilewright.dynamo.options import parse_options

    chosen, found = parse_options(options), list[GraphReport]()

    def backend(gm: Any, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_captured(gm, example_inputs, chosen, found.append)

    before = dict(counters["graph_break"])
    torch.compile(model, backend=backend, dynamic=dynamic)(*inputs, **named)
    breaks = {why: n - before.get(why, 0) for why, n in counters["graph_break"].items()}
    return Explanation(tuple(found), {why: n for why, n in breaks.items() if n})
