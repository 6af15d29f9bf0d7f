"""The runtime: opens artifacts and runs them; it imports no compiler, only NumPy, tokenizers, jinja2.

Names are fetched on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilewright.runtime.errors import ArtifactError as ArtifactError
    from tilewright.runtime.errors import SessionError as SessionError
    from tilewright.runtime.model import Model as Model
    from tilewright.runtime.model import load as load

_HOMES = {"load": "model", "Model": "model", "ArtifactError": "errors", "SessionError": "errors"}

__all__ = ["ArtifactError", "Model", "SessionError", "load"]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(
            f"module 'tilewright.runtime' has no attribute {name!r}; it offers {', '.join(__all__)}"
        )
    value: object = getattr(import_module(f"tilewright.runtime.{home}"), name)
    globals()[name] = value
    return value
