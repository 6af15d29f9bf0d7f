"""Rule 12 of staged values: they depend only on what is known at their axis and not written there.

Each refusal is checked with its whole message. Accepted stages give the same numbers compiled and
interpreted.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.render_help import run_both, runnable
from tilewright.ir.errors import VerifyError
from tilewright.ir.text.tile_parser import parse_kernel
from tilewright.ir.tile.core import Kernel
from tilewright.ir.tile.verify import verify_kernel

#: (body of instance i, j; schedule; why and what to do)
REFUSED = [
    ("store %l[0:16], load %x[0:16] %v = load %l[0:16]", "stage %v at i",
     "stage %v at i: it depends on %l, which the kernel writes\n  help: stage what the kernel only reads"),
    ("%u = load %y[i, j, 0:16] %v = %u + %u", "stage %v at j",
     "stage %v at j: it depends on %y, which the kernel writes\n  help: stage what the kernel only reads"),
    ("%v = load %x[16*j:16]", "stage %v at i",
     "stage %v at i: it depends on j, an axis inside i\n  help: stage it at j"),
    ("%v = load %x[16*i:16]", "stage %v at j; order j i",
     "stage %v at j: it depends on i, an axis inside j\n  help: stage it at i"),
    ("%a = load %d[j] %v = load %x[%a:16]", "stage %v at i",
     "stage %v at i: it depends on j, an axis inside i\n  help: stage it at j"),
    ("for k in j..j + 32 by 16 { %v = load %x[k:16] store %m[k:16], %v disjoint }", "stage %v at i",
     "stage %v at i: it depends on j, an axis inside i\n  help: stage it at j"),
    ("%a = load %d[0] for k in %a..%a + 32 by 16 { %v = load %x[k:16] store %m[k:16], %v disjoint }",
     "stage %v at i",
     ("stage %v at i: the bounds of loop k around it are computed\n  help: stage it from loops with known "
     "bounds")),
    ("%u = load %x[0:16] %v = %u + %u", "stage %u at j; stage %v at i",
     "stage %v at i: it depends on %u, which is staged at j, inside i\n  help: stage it at j"),
    ("%v = load %x[0:B] store %m[B*j:B], %v disjoint", "stage %v at i",
     "stage %v at i: it depends on B, the size of axis j inside i\n  help: stage it at j"),
]  # fmt: skip


def _kernel(body: str, schedule: str) -> Kernel:
    sized = ":B" in body
    axis, sizes = ("grid rows j in 4 by B", "B=2; ") if sized else ("grid j in 4 by 1", "")
    body = body.replace("B*j", "8*j")
    shown = "" if sized or "for k" in body else "store %y[i, j, 0:16], %v"
    return parse_kernel(f"""kernel @f(%x: f32[N], %d: i32[4], %y: f32[N, 4, 16], %m: f32[64]) {{
      grid i in N by 1 {axis} local %l : f32[16] {body} {shown} schedule * {{ {sizes}{schedule} }} }}""")


@pytest.mark.parametrize(("body", "schedule", "what"), REFUSED)
def test_what_cannot_be_staged(body: str, schedule: str, what: str) -> None:
    with pytest.raises(VerifyError) as e:
        verify_kernel(_kernel(body, schedule))
    assert str(e.value) == f"kernel @f: verify error: [12] schedule *: {what}"


#: kernels of M rows of 64, whose stage is named, bounded or ordered in a way of its own
STAGED = [
    ("%v_i: f32[M, 64]) { grid i in M by 1 %v = load %x[i:1, 0:64] store %v_i[i:1, 0:64], %v schedule * { "
    "stage %v at i } }"),
    """%y: f32[M, 64]) { grid i in M by 1 for a in 0..64 by 16 { for k in a..a + 16 by 8 {
       %v = load %x[0, k:8] store %y[i, k:8], %v } } schedule * { stage %v at i } }""",
    """%y: f32[M, 64]) {
      grid i in M by 1 grid j in 64 by 16 %u = load %x[i, 0:16] %v = %u + %u store %y[i, j:16], %v
       schedule * { stage %u at i; stage %v at j } }""",
]  # fmt: skip


@pytest.mark.parametrize("text", STAGED)
def test_what_is_staged_is_the_same(text: str) -> None:
    kernel = parse_kernel(f"kernel @f(%x: f32[M, 64], {text}")
    verify_kernel(kernel)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    run_both(kernel, {"x": x}, runnable()[-1], {"M": 3})
