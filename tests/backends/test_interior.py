"""The option `interior`: rows inside an image are computed without tests, and give the same bits."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tests.backends.render_help import runnable
from tilewright.backends.cpp.isa import TARGETS
from tilewright.backends.cpp.jit import compile_kernel
from tilewright.backends.cpp.render import render_kernel
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Stored
from tilewright.ir.tile.core import Kernel, Schedule
from tilewright.ir.types import tensor
from tilewright.passes.driver import run_passes

BEST = runnable()[-1]


def convolution(size: int, padding: int) -> Kernel:
    """3×3 over [1, size, size, 4], as lowered."""
    b = GraphBuilder("f")
    x = b.add_input("x", tensor("f32", 1, size, size, 4))
    w = b.weight("w", tensor("f32", 16, 36), Stored("memory", "w"))
    b.output(
        b.op("conv", x, w, window=(3, 3), stride=(1, 1), padding=(padding,) * 4, dilation=(1, 1), groups=1),
        "y",
    )
    passes = 'canonicalize, encode-weights{weights="f32"}, fuse, lower, expand-encodings'
    (kernel,) = run_passes(b.module(), passes).program.kernels
    return kernel


def with_interior(kernel: Kernel, on: int) -> Kernel:
    """The kernel with tiles of 4 by 16 at every level."""
    sizes = (("BM", 4), ("BN", 16))
    return replace(kernel, schedules=(Schedule("*", sizes, options=(("interior", on),)),))


def text_of(kernel: Kernel) -> str:
    return render_kernel(kernel, TARGETS[BEST])


def test_rows_inside_have_a_body_without_tests() -> None:
    kernel = convolution(8, 1)
    divided, plain = (text_of(with_interior(kernel, on)) for on in (1, 0))
    found = re.search(r"if \((v\d+)\) \{(.*)if \(!\(\1\)\) \{(.*)", divided, re.DOTALL)
    assert found is not None and "if (!(" not in plain
    row, inside, outside = found.groups()
    assert not re.search(rf"\b{row}\b", inside)
    assert re.search(rf"\b{row} (\?|&&)", outside)
    assert "if (!(" not in text_of(with_interior(convolution(8, 0), 1))  # nothing is outside


@pytest.mark.parametrize("size", [1, 4, 7])
def test_the_bits_are_the_same(size: int) -> None:
    rng = np.random.default_rng(size)
    kernel = convolution(size, 1)
    given = {
        "x": rng.standard_normal((1, size, size, 4)).astype(np.float32),
        "w": rng.standard_normal(16 * 36).astype(np.float32),
    }
    (written,) = kernel.written()
    found = []
    for on in (0, 1):
        out = np.full((1, size, size, 16), np.nan, np.float32)
        compile_kernel(with_interior(kernel, on), BEST)({**given, written: out})
        found.append(out)
    np.testing.assert_array_equal(*found)
    assert not np.isnan(found[0]).any()
