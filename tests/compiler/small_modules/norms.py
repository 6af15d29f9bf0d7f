"""Softmax over any axis, norms over rows, groups, channels and batches, losses."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.compiler.small_modules.base import F32, F64, FLOATS, INTS, Case, case, ids, x

A, W, B = x(4, 6, 8), x(8, seed=1), x(8, seed=2)
IMAGE, PER, OFF = x(2, 6, 5, 4), x(6), x(6, seed=1)
SPREAD = x(6, lo=0.5, hi=2)
OUT, TO = x(5, 7), ids(7, 5)
FULL = (F32, F64)


def batch_norm(a, m, s, w, b):  # type: ignore[no-untyped-def]
    return F.batch_norm(a, m, s, w, b), F.batch_norm(a, m, s, eps=1e-3)


CASES: dict[str, Case] = {
    "_softmax": case(lambda a: (a.softmax(0), a.softmax(1), a.softmax(-1)), A),
    "_softmax of a wider type": case(lambda a: a.softmax(1, dtype=torch.float32), A, of=(*FLOATS, *INTS)),
    "_log_softmax": case(lambda a: (a.log_softmax(0), a.log_softmax(1), a.log_softmax(-1)), A),
    "_softmax of an image": case(lambda a: (a.softmax(1), F.softmin(a, 2)), IMAGE),
    "native_layer_norm": case(
        lambda a, w, b: (F.layer_norm(a, (8,), w, b), F.layer_norm(a, (8,), w)), A, W, B
    ),
    "native_layer_norm of two axes": case(lambda a: F.layer_norm(a, (6, 8)), A),
    "native_layer_norm with weights of two axes": case(
        lambda a, w: F.layer_norm(a, (6, 8), w, w), A, x(6, 8)
    ),
    "native_layer_norm with figures": case(
        lambda a, w, b: torch.native_layer_norm(a, [8], w, b, 1e-5), A, W, B, of=FULL
    ),
    "rms_norm": case(lambda a, w: (F.rms_norm(a, (8,), w, 1e-5), F.rms_norm(a, (6, 8))), A, W),
    "native_group_norm": case(
        lambda a, w, b: (F.group_norm(a, 3, w, b), F.group_norm(a, 2)), IMAGE, PER, OFF
    ),
    "native_group_norm of rows": case(lambda a: F.group_norm(a, 2), x(5, 6)),
    "native_group_norm with figures": case(
        lambda a, w, b: torch.native_group_norm(a, w, b, 2, 6, 20, 3, 1e-5), IMAGE, PER, OFF, of=FULL
    ),
    "instance_norm": case(
        lambda a, w, b: (F.instance_norm(a), F.instance_norm(a, weight=w, bias=b)), IMAGE, PER, OFF
    ),
    "_native_batch_norm_legit_no_training": case(batch_norm, IMAGE, PER, SPREAD, PER, OFF),
    "batch_norm of rows": case(lambda a, m, s: F.batch_norm(a, m, s), x(5, 6), PER, SPREAD),
    "_native_batch_norm_legit.no_stats": case(
        lambda a, w, b: F.batch_norm(a, None, None, w, b, True), IMAGE, PER, OFF, of=FULL
    ),
    "local_response_norm": case(lambda a: F.local_response_norm(a, 3), IMAGE, of=FULL),
    "mse_loss": case(lambda a: (F.mse_loss(a, a * 2), F.l1_loss(a, a * 2), F.smooth_l1_loss(a, a + 2)), A),
    "huber_loss": case(lambda a: F.huber_loss(a, a * 1.5), A),
    "cross_entropy": case(
        lambda a, t: (F.cross_entropy(a, t), F.cross_entropy(a, t, reduction="none")), OUT, TO, of=FULL
    ),
    "cross_entropy smoothed": case(lambda a, t: F.cross_entropy(a, t, label_smoothing=0.1), OUT, TO, of=FULL),
    "nll_loss": case(lambda a, t: F.nll_loss(a.log_softmax(1), t, ignore_index=2), OUT, TO, of=FULL),
    "binary_cross_entropy": case(
        lambda a: F.binary_cross_entropy(a.sigmoid(), (a > 0).to(a.dtype)), A, of=FULL
    ),
    "binary_cross_entropy_with_logits": case(
        lambda a: F.binary_cross_entropy_with_logits(a, (a > 0).to(a.dtype)), A, of=FULL
    ),
    "kl_div": case(
        lambda a: F.kl_div(a.log_softmax(-1), (a * 2).softmax(-1), reduction="batchmean"), A, of=FULL
    ),
    "cosine_embedding_loss": case(lambda a: F.cosine_embedding_loss(a[0], a[1], torch.ones(6)), A, of=FULL),
    "triplet_margin_loss": case(lambda a: F.triplet_margin_loss(a[0], a[1], a[2]), A, of=FULL),
    "LayerNorm and Linear": case(lambda a, w: F.linear(F.layer_norm(a, (8,)), w), A, x(5, 8)),
    "weight_norm": case(lambda a: torch._weight_norm(a[0], a[0, :, :1] * 0 + 2, 0), A, of=FULL),
}
