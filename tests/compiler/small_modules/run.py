"""Runs small modules: many as one, each compared with eager, interpreted and compiled.

In: cases and an element type. Out: what is wrong, a line per case; an empty list if nothing is. As a script:
`python -m tests.compiler.small_modules.run [--stages graph,tile,compiled] [FAMILY [DTYPE [CASE]]]` runs what
matches the names.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import tilewright as tw
from tests.compiler.small_modules import FAMILIES
from tests.compiler.small_modules.base import NAMES, Case
from tilewright.capture import capture_module
from tilewright.ir.errors import TilewrightError, UnsupportedError
from tilewright.ir.graph.core import Module
from tilewright.ir.interp.graph import run_graph
from tilewright.ir.interp.plan import PlanRunner
from tilewright.ir.text.graph_parser import parse_module
from tilewright.ir.weights.sources import WeightStore

Array = NDArray[Any]
#: by name, each with the element type of its inputs
Cases = Mapping[str, tuple[Case, torch.dtype]]
#: share of the largest result by which results may differ, by type
CLOSE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


class Many(nn.Module):
    """Every case on inputs of its own; result k of case n is called `r{n}_{k}`."""

    def __init__(self, cases: Cases) -> None:
        super().__init__()
        self.cases = dict(cases)

    def forward(self, *inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        out = {}
        for n, ((case, _), given) in enumerate(zip(self.cases.values(), inputs, strict=True)):
            results = case.fn(*given)
            listed = results if isinstance(results, tuple | list) else (results,)
            kept = [r for r in listed if isinstance(r, Tensor)]
            out.update({f"r{n}_{k}": r.clone() for k, r in enumerate(kept)})
        return out


def supported(cases: Mapping[str, Case], dtype: torch.dtype) -> dict[str, tuple[Case, torch.dtype]]:
    """Those that are to work for an element type."""
    return {n: (c, dtype) for n, c in cases.items() if dtype in c.dtypes and not c.refused}


def problems(cases: Cases, stages: Collection[str] = ("graph",)) -> list[str]:
    """What is wrong with cases that are to work, as one module. `stages`: whose values are compared with
    eager's: of the graph, the tile programs, the compiled library."""
    if not cases:
        return []
    inputs = tuple(c.inputs(dtype) for c, dtype in cases.values())
    model = Many(cases)
    with torch.no_grad():
        want = model(*inputs)
    out = []
    for stage, got in _values(model, inputs, stages):
        out += [f"{stage}: {p}" for p in _differences(cases, got, want)]
    return out


def _values(model: Many, inputs: Any, stages: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    flat = [held(t) for given in inputs for t in given]
    if tuple(stages) == ("graph",):
        captured, memory = capture_module(model, inputs)
        yield "graph", _interpreted(captured, flat, WeightStore(memory=memory))
        return
    compiled = tw.compile(model, example_inputs=inputs, recipe="f32")
    captured = parse_module(compiled.stages[0].text)
    named = _named(captured, flat)
    if "graph" in stages:
        yield "graph", _interpreted(captured, flat, compiled.store)
    if "tile" in stages:
        with np.errstate(all="ignore"):
            yield "tile", PlanRunner(compiled.program, compiled.store).run("forward", named)
    if "compiled" in stages:
        got = compiled(*inputs)
        assert isinstance(got, dict)
        yield "compiled", got


def _named(captured: Module, flat: Sequence[Array]) -> dict[str, Array]:
    inputs = captured.graph("forward").inputs
    return {v.name: x for v, x in zip(inputs, flat, strict=True)}


def _interpreted(captured: Module, flat: Sequence[Array], store: WeightStore) -> dict[str, Array]:
    with np.errstate(all="ignore"):
        return run_graph(captured, "forward", _named(captured, flat), store)


def held(x: Any) -> Array:
    """As interpreters hold it: bf16 and f16 in float32."""
    if not isinstance(x, Tensor):
        return np.asarray(x)
    return x.float().numpy() if x.dtype in (torch.float16, torch.bfloat16) else x.numpy()


def _differences(cases: Cases, got: Mapping[str, Any], want: Mapping[str, Tensor]) -> Iterator[str]:
    """Types of results are compared where there are tensors."""
    names = list(cases)
    for key, value in want.items():
        name, ours = names[int(key[1:].partition("_")[0])], got[key]
        if isinstance(ours, Tensor) and ours.dtype != value.dtype:
            yield f"{name} {key}: is {ours.dtype}, expected {value.dtype}"
        if why := difference(held(ours), value, cases[name][0].loose):
            yield f"{name} {key}: {why}"


def difference(got: Array, wanted: Tensor, loose: float = 1.0) -> str:
    """How a result differs from eager's; empty if it does not. NaN is like NaN, infinity like infinity."""
    want = held(wanted)
    if got.shape != want.shape:
        return f"shape {got.shape}, expected {want.shape}"
    if not wanted.is_floating_point():
        off = np.asarray(got != want)
    else:
        size = np.abs(want[np.isfinite(want) & (np.abs(want) < 1e30)]).max(initial=0)
        share = CLOSE[wanted.dtype] * loose
        with np.errstate(all="ignore"):
            off = ~np.isclose(got, want, rtol=share, atol=share * size, equal_nan=True)
    if not off.any():
        return ""
    at = tuple(int(n[0]) for n in np.nonzero(off)) if want.ndim else ()
    return f"{got[at]}, expected {want[at]} at {list(at)} of {list(want.shape)} ({int(off.sum())} differ)"


def refusal(case: Case, dtype: torch.dtype) -> str:
    """The message with which a case is refused; empty if it is not."""
    try:
        capture_module(Many({"case": (case, dtype)}), (case.inputs(dtype),))
    except UnsupportedError as e:
        return str(e)
    return ""


# ------------------------------------------------------------------ as a script
def _isolated(cases: Cases, stages: Collection[str]) -> Iterator[str]:
    """All cases at once; one after the other where that fails."""
    try:
        yield from problems(cases, stages)
    except Exception:
        for name, c in cases.items():
            try:
                yield from problems({name: c}, stages)
            except Exception as e:
                text = str(e) if isinstance(e, TilewrightError) else f"{type(e).__name__}: {e}"
                yield f"{name}: {text[:600]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--stages", default="graph", help="of graph,tile,compiled")
    args = parser.parse_args()
    family, dtype, case = [*args.names, "", "", ""][:3]
    for title, cases in FAMILIES.items():
        if not title.lower().startswith(family.lower()):
            continue
        chosen = {n: c for n, c in cases.items() if case in n}
        for d, short in NAMES.items():
            if dtype in ("", "all", short):
                for line in _isolated(supported(chosen, d), args.stages.split(",")):
                    print(f"{title}, {short}: {line}", flush=True)


if __name__ == "__main__":
    main()
