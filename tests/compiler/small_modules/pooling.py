"""Pooling in one to three axes with every option, adaptive pools, interpolation, sampling of grids."""

from __future__ import annotations

from torch.nn import functional as F

from tests.compiler.small_modules.base import F32, F64, Case, case, x

L, P, B = x(2, 3, 11), x(2, 3, 9, 10), x(2, 2, 5, 6, 7)
FULL = (F32, F64)
GRID = x(2, 4, 5, 2, lo=-1.3, hi=1.3)


def scaled(mode: str, factor: float | tuple[float, ...] = 2.0, **named):  # type: ignore[no-untyped-def]
    return lambda a: F.interpolate(a, scale_factor=factor, mode=mode, **named)


def sized(mode: str, size: tuple[int, ...], **named):  # type: ignore[no-untyped-def]
    return lambda a: F.interpolate(a, size=size, mode=mode, **named)


def sampled(**named):  # type: ignore[no-untyped-def]
    return lambda a, g: F.grid_sample(a, g, **named)


CASES: dict[str, Case] = {
    "max_pool1d": case(lambda a: (F.max_pool1d(a, 3), F.max_pool1d(a, 3, 1, 1)), L),
    "max_pool2d": case(
        lambda a: (F.max_pool2d(a, 2), F.max_pool2d(a, 3, 2, 1), F.max_pool2d(a, (2, 3), 1, dilation=2)), P
    ),
    "max_pool2d rounded up": case(
        lambda a: (F.max_pool2d(a, 2, ceil_mode=True), F.max_pool2d(a, 3, 3, 1, 1, True)), P
    ),
    "max_pool2d_with_indices": case(
        lambda a: (*F.max_pool2d(a, 2, return_indices=True), *F.max_pool2d(a, 3, 2, 1, return_indices=True)),
        P,
    ),
    "max_pool2d_with_indices of ties": case(
        lambda a: F.max_pool2d(a.round(), 3, 1, 1, return_indices=True), P
    ),
    "max_pool3d_with_indices": case(lambda a: F.max_pool3d(a, 2, return_indices=True), B, of=FULL),
    "max_pool3d": case(lambda a: F.max_pool3d(a, 3, 2, 1), B),
    "avg_pool1d": case(lambda a: (F.avg_pool1d(a, 3), F.avg_pool1d(a, 3, 2, 1)), L),
    "avg_pool2d": case(lambda a: (F.avg_pool2d(a, 2), F.avg_pool2d(a, 3, 2, 1)), P),
    "avg_pool2d without padding": case(lambda a: F.avg_pool2d(a, 3, 2, 1, count_include_pad=False), P),
    "avg_pool2d rounded up": case(
        lambda a: (
            F.avg_pool2d(a, 2, ceil_mode=True),
            F.avg_pool2d(a, 3, 2, 1, True),
            F.avg_pool2d(a, 3, 2, 1, True, False),
        ),
        P,
    ),
    "avg_pool2d of a divisor": case(lambda a: F.avg_pool2d(a, 2, divisor_override=3), P),
    "avg_pool3d": case(lambda a: F.avg_pool3d(a, 2), B, of=FULL),
    "lp_pool2d": case(lambda a: F.lp_pool2d(a.abs(), 2, 2), P, of=FULL),
    "_adaptive_avg_pool2d": case(
        lambda a: (F.adaptive_avg_pool2d(a, 1), F.adaptive_avg_pool2d(a, (3, 5))), P
    ),
    "_adaptive_avg_pool2d of uneven parts": case(lambda a: F.adaptive_avg_pool2d(a, (4, 7)), P),
    "_adaptive_avg_pool2d to more": case(lambda a: F.adaptive_avg_pool2d(a, (12, 10)), P),
    "adaptive_avg_pool1d": case(lambda a: F.adaptive_avg_pool1d(a, 4), L),
    "_adaptive_avg_pool3d": case(lambda a: F.adaptive_avg_pool3d(a, (2, 3, 7)), B),
    "adaptive_max_pool2d": case(lambda a: F.adaptive_max_pool2d(a, (3, 5)), P, of=FULL),
    "adaptive_max_pool2d of uneven parts": case(
        lambda a: F.adaptive_max_pool2d(a, (4, 3)), P, of=(F32,), refused="into uneven parts"
    ),
    "adaptive_max_pool1d": case(lambda a: F.adaptive_max_pool1d(a, 11), L, of=FULL),
    "upsample_nearest1d": case(scaled("nearest"), L),
    "upsample_nearest2d": case(scaled("nearest"), P),
    "upsample_nearest2d to a size": case(sized("nearest", (7, 13)), P),
    "upsample_nearest3d": case(scaled("nearest"), B),
    "nearest-exact": case(scaled("nearest-exact", 1.5), P, of=FULL),
    "upsample_linear1d": case(scaled("linear"), L),
    "upsample_bilinear2d": case(scaled("bilinear"), P),
    "upsample_bilinear2d to a size": case(sized("bilinear", (7, 13)), P),
    "upsample_bilinear2d with corners": case(sized("bilinear", (12, 5), align_corners=True), P),
    "upsample_bicubic2d": case(scaled("bicubic"), P),
    "upsample_bicubic2d with corners": case(sized("bicubic", (12, 5), align_corners=True), P),
    "upsample_trilinear3d": case(scaled("trilinear"), B),
    "upsample_bilinear2d antialiased": case(
        lambda a: F.interpolate(a, size=(5, 4), mode="bilinear", antialias=True),
        P,
        of=(F32,),
        refused="aten._upsample_bilinear2d_aa.default",
    ),
    "area": case(sized("area", (3, 5)), P),
    "grid_sampler_2d": case(sampled(align_corners=False), P, GRID, of=FULL),
    "grid_sampler_2d nearest": case(sampled(mode="nearest", align_corners=False), P, GRID, of=FULL),
    "grid_sampler_2d border": case(sampled(padding_mode="border", align_corners=True), P, GRID, of=FULL),
    "grid_sampler_2d reflection": case(
        sampled(padding_mode="reflection", align_corners=True), P, GRID, of=FULL
    ),
    "grid_sampler_2d bicubic": case(sampled(mode="bicubic", align_corners=False), P, GRID, of=FULL, loose=4),
    "affine_grid": case(lambda t: F.affine_grid(t, [2, 3, 4, 5], align_corners=False), x(2, 2, 3), of=FULL),
}
