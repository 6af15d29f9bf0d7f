"""The backend of `torch.compile`: `torch.compile(model, backend="tilewright", options={…})`.

In: graphs that PyTorch captured, with their inputs. Out: functions of the same meaning. Operators without a
kernel stay in PyTorch, and one line says which. Importing this module imports neither PyTorch nor a compiler:
PyTorch loads it to list its backends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["backend"]


def backend(
    gm: Any, example_inputs: Sequence[Any], *, options: Mapping[str, object] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:  # fmt: skip
    """Compile one graph. `options`: see `tilewright.dynamo.options.Options`; `mode`: those of PyTorch.
    Raises RefusedError for an unknown option, and under `strict` UnsupportedError naming every operator
    without a kernel."""
    from tilewright.dynamo.compiling import compile_captured
    from tilewright.dynamo.options import parse_options

    return compile_captured(gm, example_inputs, parse_options(options, mode))
