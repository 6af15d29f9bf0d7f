"""The front door of Tilewright: `import tilewright as tw`, then `tw.compile`, `tw.load` and the two `register_…`.

Every name is fetched on first use from the table below, so that importing the package, or only its runtime, loads neither
PyTorch nor the compiler.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilewright.api import compile as compile
    from tilewright.ir.encoding import register_encoding as register_encoding
    from tilewright.ir.ops.base import register_op as register_op
    from tilewright.runtime.model import load as load

__version__ = "0.1.0"

#: Public name -> where it lives, as `module:attribute`.
_HOMES = {
    "compile": "tilewright.api:compile",
    "load": "tilewright.runtime.model:load",
    "register_encoding": "tilewright.ir.encoding:register_encoding",
    "register_op": "tilewright.ir.ops.base:register_op",
}

__all__ = ["__version__", "compile", "load", "register_encoding", "register_op"]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tilewright' has no attribute {name!r}; it offers {', '.join(sorted(_HOMES))}")
    module, _, attribute = home.partition(":")
    value: object = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
