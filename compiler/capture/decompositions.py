"""What PyTorch decomposes operators to that no importer knows.

Its table for exports, and its other decompositions to operators of ATen.

In: custom importers, which are left alone. Out: a table for `run_decompositions` or for tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._decomp import decomposition_table

from tilewright.capture.context import Importer, find_importer

Table = dict[Any, Callable[..., Any]]
#: decompositions here consist of PyTorch's primitives, for which there are no importers
REFERENCES = "torch._refs"


def decompositions(custom: Mapping[str, Importer]) -> Table:
    """Operator -> its decomposition, for every operator that no importer takes as it is."""
    others = {op: fn for op, fn in decomposition_table.items() if not fn.__module__.startswith(REFERENCES)}
    table: Table = {**others, **dict(torch.export.default_decompositions().items())}
    return {op: fn for op, fn in table.items() if not find_importer(str(op), custom)}
