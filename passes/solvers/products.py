"""Large float32 products, which is where the time of calibration goes.

In: float32 matrices. Out: their product on PyTorch, by whichever of its two libraries is fast here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tilewright.ir.solver import F32


@contextmanager
def fast_products() -> Iterator[None]:
    """Products by oneDNN, twice as fast as MKL on CPUs that are not Intel's: it is reached by allowing bf16
    inside, which it has for AMX alone. CPUs with AMX keep MKL, and float32."""
    import torch

    if torch.cpu._is_amx_tile_supported():
        yield
        return
    matmul = torch.backends.mkldnn.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def narrow_products() -> bool:
    """Whether products of bf16 are faster here than those of float32."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def product(a: F32, b: F32) -> F32:
    """a @ b"""
    import torch

    with fast_products():
        out: F32 = (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    return out
