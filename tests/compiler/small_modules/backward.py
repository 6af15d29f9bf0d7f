"""Operators that backward passes consist of."""

from __future__ import annotations

import torch

from tests.compiler.small_modules.base import F32, F64, Case, case, ids, mask, x

ATEN = torch.ops.aten
FULL = (F32, F64)
G, A = x(4, 6, 8), x(4, 6, 8, seed=1)
W, B = x(8), x(8, seed=1)
IMAGE, GI, PER = x(2, 6, 9, 10), x(2, 6, 9, 10, seed=1), x(6)
SHARE = x(4, 6, 8, lo=0.05, hi=0.95)


def group_norm(g, a, w):  # type: ignore[no-untyped-def]
    y, mean, spread = ATEN.native_group_norm(a, w, w, 2, 6, 90, 3, 1e-5)
    return ATEN.native_group_norm_backward(g, a, mean, spread, w, 2, 6, 90, 3, [True, True, True])


def layer_norm(g, a, w, b):  # type: ignore[no-untyped-def]
    y, mean, spread = ATEN.native_layer_norm(a, [8], w, b, 1e-5)
    return ATEN.native_layer_norm_backward(g, a, [8], mean, spread, w, b, [True, True, True])


def max_pool(kernel, stride, padding):  # type: ignore[no-untyped-def]
    def run(a):  # type: ignore[no-untyped-def]
        y, at = ATEN.max_pool2d_with_indices(a, kernel, stride, padding)
        return ATEN.max_pool2d_with_indices_backward(y * 2, a, kernel, stride, padding, [1, 1], False, at)

    return run


def avg_pool(kernel, stride, padding, ceil=False, padded=True, over=None):  # type: ignore[no-untyped-def]
    def run(a):  # type: ignore[no-untyped-def]
        y = ATEN.avg_pool2d(a, kernel, stride, padding, ceil, padded, over)
        return ATEN.avg_pool2d_backward(y * 2, a, kernel, stride, padding, ceil, padded, over)

    return run


CASES: dict[str, Case] = {
    "_softmax_backward_data": case(
        lambda g, a: (
            ATEN._softmax_backward_data(g, a.softmax(1), 1, a.dtype),
            ATEN._softmax_backward_data(g, a.softmax(-1), -1, a.dtype),
        ),
        G,
        A,
        of=FULL,
    ),
    "_log_softmax_backward_data": case(
        lambda g, a: ATEN._log_softmax_backward_data(g, a.log_softmax(1), 1, a.dtype), G, A, of=FULL
    ),
    "native_layer_norm_backward": case(layer_norm, G, A, W, B, of=FULL, loose=4),
    "native_group_norm_backward": case(group_norm, GI, IMAGE, PER, of=FULL, loose=4),
    "embedding_dense_backward": case(
        lambda g, i: ATEN.embedding_dense_backward(g, i, 9, 2, False), x(3, 4, 8), ids(9, 3, 4), of=FULL
    ),
    "max_pool2d_with_indices_backward": case(max_pool([2, 2], [2, 2], [0, 0]), IMAGE, of=FULL),
    "max_pool2d_with_indices_backward of windows that meet": case(
        max_pool([3, 3], [2, 1], [1, 1]), IMAGE, of=FULL
    ),
    "avg_pool2d_backward": case(avg_pool([2, 2], [2, 2], [0, 0]), IMAGE, of=FULL),
    "avg_pool2d_backward of windows that meet": case(
        avg_pool([3, 2], [2, 1], [1, 0], False, False), IMAGE, of=FULL
    ),
    "avg_pool2d_backward rounded up": case(avg_pool([3, 3], [2, 2], [1, 1], True), IMAGE, of=FULL),
    "_adaptive_avg_pool2d_backward": case(
        lambda a: ATEN._adaptive_avg_pool2d_backward(ATEN._adaptive_avg_pool2d(a, [3, 5]) * 2, a),
        IMAGE,
        of=FULL,
    ),
    "_adaptive_avg_pool2d_backward of uneven parts": case(
        lambda a: ATEN._adaptive_avg_pool2d_backward(ATEN._adaptive_avg_pool2d(a, [4, 7]) * 2, a),
        IMAGE,
        of=FULL,
    ),
    "threshold_backward": case(lambda g, a: ATEN.threshold_backward(g, a, 0), G, A, of=FULL),
    "gelu_backward": case(
        lambda g, a: (ATEN.gelu_backward(g, a), ATEN.gelu_backward(g, a, approximate="tanh")), G, A, of=FULL
    ),
    "silu_backward": case(lambda g, a: ATEN.silu_backward(g, a), G, A, of=FULL),
    "sigmoid_backward": case(lambda g, a: ATEN.sigmoid_backward(g, a), G, SHARE, of=FULL),
    "tanh_backward": case(lambda g, a: ATEN.tanh_backward(g, a), G, SHARE, of=FULL),
    "elu_backward": case(lambda g, a: ATEN.elu_backward(g, 1.0, 1.0, 1.0, False, a), G, A, of=FULL),
    "leaky_relu_backward": case(lambda g, a: ATEN.leaky_relu_backward(g, a, 0.1, False), G, A, of=FULL),
    "hardtanh_backward": case(lambda g, a: ATEN.hardtanh_backward(g, a, -1, 1), G, A, of=FULL),
    "hardswish_backward": case(lambda g, a: ATEN.hardswish_backward(g, a), G, A, of=FULL),
    "softplus_backward": case(lambda g, a: ATEN.softplus_backward(g, a, 1, 20), G, A, of=FULL),
    "mse_loss_backward": case(lambda g, a: ATEN.mse_loss_backward(g.sum(), a, g, 1), G, A, of=FULL),
    "nll_loss_backward": case(
        lambda a, t: ATEN.nll_loss_backward(a.sum(), a, t, None, 1, -100, a.new_full((), 5)),
        x(5, 7),
        ids(7, 5),
        of=FULL,
    ),
    "slice_backward": case(lambda g: ATEN.slice_backward(g[:, :3], [4, 6, 8], 1, 1, 4, 1), G, of=FULL),
    "select_backward": case(lambda g: ATEN.select_backward(g[0], [4, 6, 8], 0, 2), G, of=FULL),
    "unfold_backward": case(
        lambda g: ATEN.unfold_backward(g.reshape(4, 6, 2, 4), [4, 6, 7], 2, 4, 3), G, of=FULL
    ),
    "masked_fill of gradients": case(lambda g, m: g.masked_fill(m, 0).sum((0, 1)), G, mask(4, 6, 8), of=FULL),
    "convolution_backward": case(
        lambda g, a, w: ATEN.convolution_backward(
            g, a, w, [0], [1], [0], [1], False, [0], 1, [True, True, False]
        ),
        x(4, 4, 6),
        x(4, 6, 8),
        x(4, 6, 3),
        of=(F32,),
        refused="aten.convolution_backward.default",
    ),
}
