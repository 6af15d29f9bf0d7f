"""Activations as torch.nn.functional has them."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.compiler.small_modules.base import F32, F64, Case, case, x

M = x(3, 4, 6, lo=-8, hi=8)
_PLAIN = (
    "relu", "relu6", "silu", "gelu", "softplus", "leaky_relu", "elu", "selu", "celu", "hardtanh",
    "hardsigmoid", "hardswish", "mish", "logsigmoid", "softsign", "tanhshrink", "hardshrink", "softshrink",
)  # fmt: skip

CASES: dict[str, Case] = {
    **{n: case(getattr(F, n), M) for n in _PLAIN},
    "gelu tanh": case(lambda a: F.gelu(a, approximate="tanh"), M),
    "softplus beta": case(lambda a: F.softplus(a, 2.0, 1.0), M),
    "elu alpha": case(lambda a: F.elu(a, 0.7), M),
    "leaky_relu slope": case(lambda a: F.leaky_relu(a, 0.3), M),
    "threshold": case(lambda a: F.threshold(a, 0.5, -1.0), M),
    "hardtanh bounds": case(lambda a: F.hardtanh(a, -2, 0.5), M),
    "prelu": case(F.prelu, M, x(4)),
    "rrelu": case(lambda a: F.rrelu(a, training=False), M),
    "glu": case(lambda a: (F.glu(a, -1), F.glu(a, 1)), M),
    "dropout": case(lambda a: F.dropout(a, 0.5, training=False), M),
    "native_dropout": case(lambda a: torch.native_dropout(a, 0.5, False), M, of=(F32, F64)),
    "gumbel-like": case(lambda a: -torch.log(-torch.log(torch.sigmoid(a))), M, of=(F32, F64)),
    "swiglu": case(lambda a, b: F.silu(a) * b, M, x(3, 4, 6)),
    "geglu": case(lambda a, b: F.gelu(a) * b, M, x(3, 4, 6)),
    "normalize": case(lambda a: F.normalize(a, dim=1), M),
}
