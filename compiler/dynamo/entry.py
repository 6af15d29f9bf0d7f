"""The function that `torch.compile` calls for `backend="tilewright"`.

In: graphs that PyTorch captured. Out: functions. Importing this module lets Dynamo capture recurrent layers:
it would leave a function with an LSTM or a GRU in it to Python, and say nothing. The setting holds for other
backends of the process too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch._dynamo

from tilewright.dynamo.compiling import compile_captured
from tilewright.dynamo.options import parse_options

torch._dynamo.config.allow_rnn = True


def backend(
    gm: Any, example_inputs: Sequence[Any], *, options: Mapping[str, object] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:  # fmt: skip
    """Compile one graph. `options`: see `tilewright.dynamo.options.Options`; `mode`: those of PyTorch.
    Raises RefusedError for an unknown option, and under `strict` UnsupportedError naming every operator
    without a kernel."""
    return compile_captured(gm, example_inputs, parse_options(options, mode))
