"""Every rule of programs, broken once in a text that keeps all of them."""

from __future__ import annotations

import pytest

from tests.ir.test_plan_text import GOLDEN
from tilewright.ir.errors import VerifyError
from tilewright.ir.text.plan_parser import parse_program
from tilewright.passes.driver import verify_ir

FIRST = "call @scale(%x, @w, %a) {M=T}"
BROKEN = [
    (1, "buffer %b : ", "buffer %a : ", "input or buffer a is declared twice"),
    (1, "state @kv", "state @w", "weight or state w is declared twice"),
    (2, "plan @step(%x: f32[T, 8])", "plan @step(%x: f32[S, 8])",
     "dimension S uses S, which is not declared"),
    (2, FIRST, FIRST.replace("M=T", "M=2*U"), "dimension 2*U uses U, which is not declared"),
    (3, FIRST, FIRST.replace("@scale", "@scald"), "no kernel @scald"),
    (3, FIRST, FIRST.replace("@w, ", ""), "@scale takes 3 arguments, got 2"),
    (3, FIRST, FIRST.replace("@w", "@v"), "@v is not an input, buffer, weight or cache"),
    (4, FIRST, FIRST.replace("{M=T}", "{N=T}"), "@scale needs values for M, in this order"),
    (4, "when M > 4", "when Z > 4", "the condition on Z does not name a symbol"),
    (5, FIRST, FIRST.replace("%x", "@kv.k"), "@kv.k is stored as bf16, parameter %x as f32"),
    (5, "buffer %a : f32[T, 8]", "buffer %a : i32[T, 8]", "%a is stored as i32, parameter %y as f32"),
    (6, FIRST, FIRST.replace("%a", "%x"), "writes %x, which is read-only"),
    (6, FIRST, FIRST.replace("%x", "%b"), "reads %b, which has not been written"),
    (6, "call @scale(%a, @w, %b) {M=T} when M > 4", "call @scale(%b, @w, %b) {M=T} when M > 4",
     "%b is passed for %x and for %y, which the kernel writes"),
    (7, "bytes 128 at 0", "bytes 128 at 64", "%a ends at 192, beyond the arena of 128 bytes"),
    (8, "return y = %b", "return y = %c",
     "result y is %c, which is neither an input nor a buffer that is written"),
    (8, '"a b" = %x', "y = %x", "result y is declared twice"),
]  # fmt: skip


def test_the_text_keeps_every_rule() -> None:
    verify_ir(parse_program(GOLDEN))


@pytest.mark.parametrize(("rule", "old", "new", "message"), BROKEN)
def test_broken(rule: int, old: str, new: str, message: str) -> None:
    assert old in GOLDEN
    with pytest.raises(VerifyError) as e:
        verify_ir(parse_program(GOLDEN.replace(old, new)))
    assert e.value.message.endswith(message) and e.value.where in ("plan @step", "program")
    assert e.value.invariant == rule


def test_the_message_underlines_the_call() -> None:
    with pytest.raises(VerifyError) as e:
        verify_ir(parse_program(GOLDEN.replace(FIRST, FIRST.replace("@w", "@v"))))
    assert str(e.value) == (
        "plan @step: verify error: [3] @v is not an input, buffer, weight or cache\n"
        "    call @scale(%x, @v, %a) {M=T}\n"
        "    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^"
    )
