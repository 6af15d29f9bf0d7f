"""The public API of Tilewright: `import tilewright as tw`.

It offers `tw.compile`, `tw.load`, `tw.explain`, `tw.supports` and the `tw.register_…` functions.

Every name is fetched on first use from the table below, so that importing the package, or only its runtime,
loads neither PyTorch nor the compiler.
"""

import importlib as _importlib
import typing as _typing

from tilewright.version import __version__ as __version__

if _typing.TYPE_CHECKING:
    from tilewright.api import compile as compile
    from tilewright.backends.registry import register_backend as register_backend
    from tilewright.dynamo.explain import explain as explain
    from tilewright.ir.encoding_registry import register_encoding as register_encoding
    from tilewright.ir.errors import TilewrightError as TilewrightError
    from tilewright.ir.ops.base import register_op as register_op
    from tilewright.packages import PackageError as PackageError
    from tilewright.runtime.errors import ArtifactError as ArtifactError
    from tilewright.runtime.errors import SessionError as SessionError
    from tilewright.runtime.model import load as load
    from tilewright.supports import supports as supports

#: Public name -> where it lives, as `module:attribute`.
_HOMES = {
    "compile": "tilewright.api:compile",
    "explain": "tilewright.dynamo.explain:explain",
    "load": "tilewright.runtime.model:load",
    "supports": "tilewright.supports:supports",
    "register_backend": "tilewright.backends.registry:register_backend",
    "register_encoding": "tilewright.ir.encoding_registry:register_encoding",
    "register_op": "tilewright.ir.ops.base:register_op",
    "ArtifactError": "tilewright.runtime.errors:ArtifactError",
    "SessionError": "tilewright.runtime.errors:SessionError",
    "TilewrightError": "tilewright.ir.errors:TilewrightError",
    "PackageError": "tilewright.packages:PackageError",
}

__all__ = [
    "__version__", "compile", "explain", "load", "supports",
    "register_backend", "register_encoding", "register_op",
    "ArtifactError", "SessionError", "TilewrightError", "PackageError",
]  # fmt: skip


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(
            f"module 'tilewright' has no attribute {name!r}; it offers {', '.join(sorted(_HOMES))}"
        )
    module, _, attribute = home.partition(":")
    try:
        value: object = getattr(_importlib.import_module(module), attribute)
    except ModuleNotFoundError as e:
        from tilewright.packages import missing

        raise missing(e) or e from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(n for n in globals() if n.startswith("__"))})
