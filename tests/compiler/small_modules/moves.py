"""Views, permutations, slices, joins, flips, repetitions, padding in every mode, what makes tensors."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.compiler.small_modules.base import ALL, F32, FLOATS, NUMBERS, Case, case, x

A, Q, N = x(3, 4, 6), x(2, 3, 5, 6), x(2, 3, 4, 5, 6)


def padded(mode: str, *pads: int):  # type: ignore[no-untyped-def]
    return lambda a: F.pad(a, pads, mode=mode)


CASES: dict[str, Case] = {
    "view": case(lambda a: (a.view(12, 6), a.reshape(3, 2, 2, 6), a.flatten(1), a.unsqueeze(1)), A, of=ALL),
    "view of a transpose": case(lambda a: a.transpose(0, 2).reshape(6, 12) * 2, A, of=NUMBERS),
    "squeeze": case(lambda a: (a[:, :1].squeeze(1), a[:1, :, :1].squeeze()), A, of=ALL),
    "permute": case(lambda a: (a.permute(2, 0, 1), a.mT, a.movedim(0, -1), a.swapaxes(0, 1)), A, of=ALL),
    "permute of four axes": case(lambda a: a.permute(3, 1, 0, 2) + 1, Q, of=NUMBERS),
    "expand": case(lambda a: (a[:, :1].expand(3, 5, 6), a[0, 0].expand(2, 3, 6)), A, of=ALL),
    "slice": case(lambda a: (a[1:], a[:, ::2], a[..., 1:5:3], a[:, -2:], a[:, :, -3:-1]), A, of=ALL),
    "slice of steps": case(lambda a: (a[::2, 1::2, ::3] * 1, a[..., ::5]), A, of=NUMBERS),
    "select": case(lambda a: (a[0], a[:, -1], a[..., 2]), A, of=ALL),
    "split": case(lambda a: (*a.split(2, 1), *a.split([1, 2, 3], 2), *a.chunk(3)), A, of=ALL),
    "unbind": case(lambda a: a.unbind(1), A, of=ALL),
    "cat": case(lambda a: (torch.cat([a, a * 1], 0), torch.cat([a, a[..., :1]], -1)), A, of=ALL),
    "cat of two types": case(lambda a: torch.cat([a, a > 1, a.float()], 1), A, of=ALL),
    "stack": case(lambda a: (torch.stack([a[0], a[1]]), torch.stack([a, a], -1)), A, of=ALL),
    "hstack": case(lambda a: (torch.hstack([a, a]), torch.vstack([a, a]), torch.dstack([a, a])), A, of=ALL),
    "flip": case(lambda a: (a.flip(0), a.flip(-1), a.flip(0, 2), a.fliplr()), A, of=ALL),
    "flip of long rows": case(lambda a: a.flip(-1) * 2, x(2, 150), of=NUMBERS),
    "roll": case(lambda a: (a.roll(1), a.roll(2, 1), a.roll((-1, 8), (0, 2))), A, of=ALL),
    "repeat": case(lambda a: (a.repeat(2, 1, 3), a.repeat(2, 1, 1, 1), a.tile(2)), A, of=ALL),
    "repeat_interleave": case(lambda a: (a.repeat_interleave(3, 1), a.repeat_interleave(2)), A, of=ALL),
    "rot90": case(lambda a: torch.rot90(a, 1, (0, 1)), A, of=NUMBERS),
    "diagonal": case(lambda a: (a.diagonal(), a.diagonal(1, 0, 2), a.diagonal(-2, 1, 2)), A, of=ALL),
    "diag_embed": case(lambda a: (torch.diag_embed(a), torch.diag(a[0, 0])), A, of=NUMBERS),
    "diagonal_scatter": case(lambda a: torch.diagonal_scatter(a[0], a[0, 0, :4] * 2), A, of=NUMBERS),
    "unfold": case(lambda a: (a.unfold(2, 3, 2), a.unfold(1, 2, 1), a.unfold(0, 3, 1)), A, of=ALL),
    "im2col": case(lambda a: F.unfold(a, (2, 3), padding=1, stride=2, dilation=1), Q),
    "col2im": case(lambda a: F.fold(a, (5, 4), (2, 3), padding=1, stride=(1, 2)), x(2, 12, 12)),
    "as_strided": case(lambda a: (a.as_strided((4, 3), (6, 2)), a.as_strided((2, 2), (1, 5), 7)), A, of=ALL),
    "pixel_shuffle": case(lambda a: (F.pixel_shuffle(a, 2), F.pixel_unshuffle(a, 2)), x(2, 8, 4, 6)),
    "channel_shuffle": case(lambda a: F.channel_shuffle(a, 2), x(2, 4, 3, 3), of=FLOATS),
    "constant_pad_nd": case(lambda a: (F.pad(a, (1, 2)), F.pad(a, (0, 3, 2, 0), value=7)), A, of=NUMBERS),
    "constant_pad_nd cuts": case(lambda a: (F.pad(a, (-1, 2)), F.pad(a, (-1, -2, 1, -1))), A, of=NUMBERS),
    "constant_pad_nd of truths": case(lambda a: F.pad(a > 0, (1, 1), value=True), A, of=NUMBERS),
    "constant_pad_nd fused": case(lambda a: F.pad(a * 2, (2, 2, 1, 1)) + 1, x(2, 3, 40), of=NUMBERS),
    "reflection_pad1d": case(padded("reflect", 2, 3), A),
    "reflection_pad2d": case(padded("reflect", 1, 2, 3, 0), Q),
    "reflection_pad3d": case(padded("reflect", 1, 2, 3, 0, 1, 1), N),
    "replication_pad1d": case(padded("replicate", 2, 3), A),
    "replication_pad2d": case(padded("replicate", 1, 2, 3, 0), Q),
    "replication_pad3d": case(padded("replicate", 1, 2, 3, 0, 1, 1), N),
    "circular pad": case(padded("circular", 1, 2, 2, 0), Q),
    "arange": case(lambda a: a + torch.arange(6), A, of=NUMBERS),
    "full": case(lambda a: (torch.full((2, 3), 2.5) + 0 * a.sum(), torch.full_like(a, 3)), A, of=NUMBERS),
    "zeros": case(lambda a: (torch.zeros_like(a), torch.ones_like(a), a.new_zeros(2)), A, of=ALL),
    "eye": case(lambda a: torch.eye(4, 6) * a, A, of=FLOATS),
    "linspace": case(lambda a: torch.linspace(0, 1, 6) * a, A, of=(F32,)),
    "meshgrid": case(lambda a: torch.meshgrid(a[0, 0], a[1, :, 1], indexing="ij"), A, of=ALL),
    "tril_indices": case(lambda a: a[0][torch.tril_indices(4, 4).unbind()], A, of=ALL),
    "broadcast_tensors": case(lambda a: torch.broadcast_tensors(a, a[0, 0]), A, of=ALL),
    "cartesian_prod": case(lambda a: torch.cartesian_prod(a[0, 0], a[1, 1]), A, of=NUMBERS),
    "nonzero": case(torch.nonzero, A, of=(F32,), refused="aten.nonzero.default"),
    "rand": case(lambda a: a + torch.rand(6), A, of=(F32,), refused="aten.rand.default"),
    "fft": case(lambda a: torch.fft.rfft(a).abs(), A, of=(F32,), refused="aten._fft_r2c.default"),
}
