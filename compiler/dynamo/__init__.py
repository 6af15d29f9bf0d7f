"""The backend of `torch.compile`: `torch.compile(model, backend="tilewright", options={…})`.

In: graphs that PyTorch captured, with their inputs. Out: functions of the same meaning. Operators without a
kernel stay in PyTorch, and one line says which. Importing this module imports neither PyTorch nor a compiler;
asking it for `backend` does.
"""

from __future__ import annotations

from typing import Any

__all__ = ["backend"]


def __getattr__(name: str) -> Any:
    """`backend`, when it is first asked for."""
    if name != "backend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tilewright.dynamo.entry import backend

    return backend
