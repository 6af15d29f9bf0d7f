"""The built-in encodings. Importing this package registers them by their short names."""

from tilewright.ir.encodings import (
    codebook,
    dense,
    floats,
    gguf,
    integer_text,
    low_rank,
    normal,
    planes,
    sparse,
)

__all__ = ["codebook", "dense", "floats", "gguf", "integer_text", "low_rank", "normal", "planes", "sparse"]
