"""Dense values in the panels of blocked encodings, so that side streams can be added: `bf16 + sparse(1%)`.

`bf16` by itself is `dense.Dense`, whose layouts have nothing but values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.contraction_form import Get
from tilewright.ir.encoding import Array
from tilewright.ir.encodings.blocked import Blocked
from tilewright.ir.encodings.fields import Field
from tilewright.ir.formulas import Arithmetic, Value
from tilewright.ir.numbers import BITS, hold


@dataclass(frozen=True)
class PanelValues(Blocked):
    """Every value rounded to `dtype`, without a scale."""

    dtype: str

    ahead_of_time = "by itself it is stored without panels"

    @property
    def codec(self) -> str:  # type: ignore[override]
        return f"dense {self.dtype}"

    @property
    def narrow(self) -> bool:  # type: ignore[override]
        return self.dtype == "bf16"

    @property
    def code_bits(self) -> int:
        return BITS[self.dtype]

    def __str__(self) -> str:
        return self.dtype

    def fields(self) -> tuple[Field, ...]:
        return (Field("values", self.dtype),)

    def wider(self) -> PanelValues | None:
        return PanelValues("bf16") if self.dtype == "f16" else None

    def value(self, b: Arithmetic, code: Value) -> Value:
        return b.cast("f32", code)

    def units(self, b: Arithmetic, get: Get, dtype: str = "f32", centred: bool = True) -> Value:
        return b.cast(dtype, get("values"))

    def integers(self, b: Arithmetic, get: Get) -> Value:
        raise AssertionError(f"{self} has no integer dot")

    def round(self, x: NDArray[np.float32]) -> dict[str, Array]:
        return {"values": hold(x, self.dtype)}

    def decode(self, streams: Mapping[str, Array]) -> NDArray[np.float32]:
        return np.array(streams["values"], np.float32)
