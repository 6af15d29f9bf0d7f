"""The built-in encodings. Importing this package registers them by their short names."""

from tilewright.ir.encodings import dense, integer

__all__ = ["dense", "integer"]
