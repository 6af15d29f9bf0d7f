"""Programs that the verifier accepts give the same bits with one thread and with several.

Two stores to one buffer, updates in place. Programs with races are refused before anything is built.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.render_help import compiled, runnable
from tilewright.ir.errors import VerifyError
from tilewright.ir.interp.tile import run_kernel
from tilewright.ir.text.tile_parser import parse_kernel
from tilewright.ir.tile.verify import verify_kernel

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags

TWO_STORES = """kernel @two(%x: f32[D], %y: f32[2*D]) {
  grid d in D by 1
  store %y[d], %x[d]
  store %y[d + D], %x[d] + 1.0
  schedule * { threads d }
}"""
IN_PLACE = """kernel @inplace(%x: f32[D, 8], %y: f32[D, 8]) {
  grid rows d in D by B
  store %y[d:B, 0:8], %x[d:B, 0:8]
  store %y[d:B, 0:8], %y[d:B, 0:8] * 2.0 + 1.0
  schedule * { B=4; threads d }
}"""


@pytest.mark.parametrize("text", [TWO_STORES, IN_PLACE])
def test_threads_do_not_change_what_is_accepted(text: str) -> None:
    kernel, d = parse_kernel(text), 4099
    verify_kernel(kernel)
    x = np.random.default_rng(0).standard_normal((d, 8) if "[D, 8]" in text else d).astype(np.float32)
    y = np.full_like(x if "[D, 8]" in text else np.concatenate([x, x]), np.nan)
    want = {"x": x, "y": y.copy()}
    run_kernel(kernel, want, {"D": d})
    for threads in (1, 2, 3, 2, 1):
        got = {"x": x, "y": y.copy()}
        compiled(kernel, runnable()[-1])(got, {"D": d}, threads)
        np.testing.assert_array_equal(got["y"], want["y"])


def test_what_threads_would_change_is_refused() -> None:
    for text in (TWO_STORES.replace("by 1", "by 16").replace("[d]", "[d:16]").replace("[d + D]",
    "[d + D:16]"),
                 IN_PLACE.replace("%y[d:B, 0:8] * 2.0", "%y[0:B, 0:8] * 2.0")):  # fmt: skip
        with pytest.raises(
            VerifyError,
            match=r"\[14\] instances along grid axis d may write elements of %y that other",
        ):
            verify_kernel(parse_kernel(text))
