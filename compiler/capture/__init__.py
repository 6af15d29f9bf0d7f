"""Capture: PyTorch and Hugging Face models as modules of Graph IR.

In: a checkpoint directory, an `nn.Module` with example inputs, or an `ExportedProgram`. Out: a `Module`. Each
function is fetched on first use, so that naming the package loads neither PyTorch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tilewright.packages import require

if TYPE_CHECKING:
    from tilewright.capture.modules import capture_module as capture_module
    from tilewright.capture.trace_cache import capture_directory as capture_directory

__all__ = ["capture_directory", "capture_module"]
_HOMES = {
    "capture_directory": "tilewright.capture.trace_cache",
    "capture_module": "tilewright.capture.modules",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(
            f"module 'tilewright.capture' has no attribute {name!r}; it offers {', '.join(_HOMES)}"
        )
    require("torch", "sympy", "lark")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
