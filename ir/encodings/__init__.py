"""The built-in encodings. Importing this package registers them by their short names."""

from tilewright.ir.encodings import dense, floats, integer, normal

__all__ = ["dense", "floats", "integer", "normal"]
