"""Solvers: each one's own law on random weights, their text, and what they say when they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tilewright.ir.encodings
import tilewright.passes.solvers  # noqa: F401
from tilewright.backends.packing import weight_bytes
from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Apply, Stored, Weight
from tilewright.ir.graph.random_values import RandomWeights
from tilewright.ir.solver import Solver, Statistics, check_stored, parse_stored
from tilewright.ir.types import TensorType
from tilewright.ir.weights.safetensors import write_safetensors
from tilewright.ir.weights.solved import FOLDER, SOLVED, values_of, with_streams
from tilewright.ir.weights.sources import WeightStore, encoded, stored_values
from tilewright.passes.solvers.code_values import Form, code_values_of
from tilewright.passes.solvers.finequant import FineQuant
from tilewright.passes.solvers.gptq import inverse_factor, objective

F32 = NDArray[np.float32]
ENCODINGS = ("int4(group=32)", "int4(group=64)", "int8(channel)", "int4(channel)")


def weights(rows: int = 32, k: int = 128, seed: int = 0) -> F32:
    """Gaussian with some outliers."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, k)).astype(np.float32)
    w[rng.random(w.shape) < 0.02] *= 5
    return w


def statistics(k: int = 128, seed: int = 1) -> Statistics:
    """Of correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * k, k)) @ (np.eye(k) + 0.3 * rng.standard_normal((k, k)))
    h = (2 / len(x) * x.T @ x).astype(np.float32)
    return Statistics(h, np.abs(x).mean(0).astype(np.float32), np.abs(x).max(0).astype(np.float32), len(x))


def solve(
    text: str, w: F32, seen: Statistics | None = None
) -> tuple[Encoding, dict[str, NDArray[np.generic]]]:
    solver, inner = parse_stored(text)
    e = parse_encoding(inner)
    return e, dict(e.encode(w) if solver is None else solver.solve(w, seen, e))


def error(text: str, w: F32, seen: Statistics | None = None) -> F32:
    e, streams = solve(text, w, seen)
    return w - e.decode(streams)


# ------------------------------------------------------------------ laws
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("more", "norm"), [("", 2.4), (", norm=2", 2.0)])
def test_clip_is_never_above_nearest(encoding: str, more: str, norm: float) -> None:
    w, form = weights(), Form(parse_encoding(encoding), 128)
    groups = (len(w), -1, form.group())
    each = (np.abs(error(t, w)).astype(np.float64) ** norm for t in (f"clip({encoding}{more})", encoding))
    ours, nearest = (e.reshape(groups).sum(-1) for e in each)
    assert (ours <= nearest * (1 + 1e-6)).all()
    if encoding != "int8(channel)":
        assert ours.sum() < nearest.sum()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_hqq_is_never_above_nearest(encoding: str) -> None:
    w, form = weights(), Form(parse_encoding(encoding), 128)
    groups = (len(w), -1, form.group())
    ours, nearest = (
        (np.abs(error(t, w)) ** np.float32(0.7)).reshape(groups).sum(-1)
        for t in (f"hqq({encoding})", encoding)
    )
    assert (ours <= nearest * (1 + 1e-6)).all()
    assert ours.sum() < nearest.sum()


@pytest.mark.parametrize("encoding", [*ENCODINGS, "int2(group=32, min)", "int3(group=64, asym)"])
def test_lsq_never_rises(encoding: str) -> None:
    """Neither from round to nearest, nor from one round to the next."""
    w, form = weights(), Form(parse_encoding(encoding), 128)
    groups = (len(w), -1, form.group())
    last = np.square(error(encoding, w)).reshape(groups).sum(-1)
    first = last.sum()
    for rounds in (1, 2, 5, 15):
        now = np.square(error(f"lsq({encoding}, rounds={rounds})", w)).reshape(groups).sum(-1)
        assert (now <= last * (1 + 1e-6)).all()
        last = now
    assert last.sum() < (0.999 if "8" in encoding else 0.95) * first


@pytest.mark.parametrize(
    "encoding", ["codebook3", "codebook4", "planes2(group=64)", "planes3(group=64)", "nf4", "q4_0"]
)
def test_tables_and_planes_fall_from_round_to_round(encoding: str) -> None:
    """k-means, and least squares on planes."""
    w, form = weights(k=256), Form(parse_encoding(encoding), 256)
    groups = (len(w), -1, form.group())
    last = np.square(error(encoding, w)).reshape(groups).sum(-1)
    first = last.sum()
    for rounds in (1, 3, 15):
        now = np.square(error(f"lsq({encoding}, rounds={rounds})", w)).reshape(groups).sum(-1)
        assert (now <= last * (1 + 1e-6)).all()
        last = now
    assert last.sum() < (0.96 if encoding in ("nf4", "q4_0") else 0.65) * first


def test_free_coefficients_beat_uniform_steps_at_two_bits() -> None:
    w = weights(k=256)
    planes, uniform, nearest = (
        np.square(error(t, w)).sum()
        for t in ("lsq(planes2(group=64))", "lsq(int2(group=64, min))", "int2(group=64, min)")
    )
    assert planes < 0.9 * uniform < 0.9 * nearest


def test_weighted_codebooks_are_below_uniform_levels() -> None:
    """Weighted by sensitivity, a row's own table loses less than equal steps of as many bits."""
    w, seen = weights(k=256), statistics(256)
    d = np.diag(np.diagonal(seen.h) * np.geomspace(0.01, 100, 256)).astype(np.float32)
    loud = replace(seen, h=d)
    table, uniform = (objective(error(t, w, loud), d).sum() for t in ("wlsq(codebook3)", "int3(channel)"))
    assert table < 0.5 * uniform


@pytest.mark.parametrize("solver", ["{}", "lsq({})", "gptq({})"])
def test_outliers_beside_three_bits_help(solver: str) -> None:
    w, seen = weights(k=256), statistics(256)
    beside, alone = (
        objective(error(solver.format(e), w, seen), seen.h).sum()
        for e in ("int3(group=64) + sparse(0.5%)", "int3(group=64)")
    )
    assert beside < 0.95 * alone


@pytest.mark.parametrize(
    "encoding", ["codebook3", "planes2(group=64)", "nf4", "fp8", "q4_k", "int3(group=64) + sparse(0.5%)"]
)
def test_gptq_on_every_kind_of_code(encoding: str) -> None:
    w, seen = weights(k=256), statistics(256)
    ours, nearest = (
        objective(error(f"gptq({encoding})", w, seen), seen.h),
        objective(error(encoding, w), seen.h),
    )
    assert (ours <= nearest).all() and ours.sum() < 0.9 * nearest.sum()


def test_weighted_lsq_lowers_the_weighted_error() -> None:
    w, seen = weights(), statistics()
    d = np.diagonal(seen.h) * np.geomspace(0.01, 100, 128)
    loud = replace(seen, h=np.diag(d).astype(np.float32))
    ours, plain = (
        objective(error(t, w, loud), loud.h).sum() for t in ("wlsq(int3(group=64))", "int3(group=64)")
    )
    assert ours < 0.8 * plain


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("form", ["gptq({})", "gptq({}, act_order=true)", "gptq(clip({}))"])
def test_gptq_objective_is_never_above_nearest(encoding: str, form: str) -> None:
    w, seen = weights(), statistics()
    ours, nearest = (
        objective(error(form.format(encoding), w, seen), seen.h),
        objective(error(encoding, w), seen.h),
    )
    if "clip" not in form:
        assert (ours <= nearest).all()
    assert ours.sum() < 0.8 * nearest.sum()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("order", ["", ", act_order=true"])
def test_gptq_with_diagonal_h_is_nearest(encoding: str, order: str) -> None:
    w, seen = weights(), statistics()
    seen = replace(seen, h=np.diag(np.diagonal(seen.h)).astype(np.float32))
    _, ours = solve(f"gptq({encoding}{order})", w, seen)
    for name, want in parse_encoding(encoding).encode(w).items():
        np.testing.assert_array_equal(ours[name], want)


@pytest.mark.parametrize(
    ("encoding", "share"),
    [("int3(group=32) + sparse(2%)", 0.9), ("int4(channel) + sparse(1%)", 1), ("mxfp4 + sparse(2%)", 0.9)],
)
def test_spqr_places_outliers_where_they_save_most(encoding: str, share: float) -> None:
    """Never above the largest weights' loss; in groups, where inputs differ in loudness, well below it; GPTQ
    goes below both."""
    w, seen = weights(), statistics()
    loud = np.geomspace(0.1, 10, 128)
    seen = replace(seen, h=(seen.h * loud * loud[:, None]).astype(np.float32))
    by_size, ours = (objective(error(t, w, seen), seen.h) for t in (encoding, f"spqr({encoding})"))
    assert (ours <= by_size).all() and ours.sum() <= share * by_size.sum()
    assert objective(error(f"gptq(spqr({encoding}))", w, seen), seen.h).sum() < ours.sum()


def test_spqr_keeps_what_a_loud_input_meets() -> None:
    w, seen = weights(), statistics()
    h = np.eye(128, dtype=np.float32)
    h[7, 7] = 1e6
    _, streams = solve("spqr(int3(group=32) + sparse(1%))", w, replace(seen, h=h))
    assert (streams["columns"] == 7).any(-1).mean() > 0.8  # unless it is all but exact by chance


def test_spqr_needs_outliers() -> None:
    with pytest.raises(EncodingError, match="has no outliers to choose; write spqr"):
        solve("spqr(int4(group=32))", weights(), statistics())


def test_the_factor_is_that_of_the_inverse() -> None:
    h = statistics(200).h.astype(np.float64)
    u = inverse_factor(h.astype(np.float32), 0.01).astype(np.float64)
    damped = h + 0.01 * np.diagonal(h).mean() * np.eye(200)
    np.testing.assert_allclose(u.T @ u @ damped, np.eye(200), atol=1e-4)
    assert (np.tril(u, -1) == 0).all()


def test_gptq_takes_columns_never_seen() -> None:
    w, seen = weights(), statistics()
    h = seen.h.copy()
    h[5], h[:, 5] = 0, 0
    assert np.isfinite(error("gptq(int4(group=32))", w, replace(seen, h=h))).all()


def test_gptq_blocks_do_not_matter() -> None:
    w, seen = weights(), statistics()
    one, many = (error(f"gptq(int4(channel), block={b})", w, seen) for b in (16, 128))
    assert abs(objective(one, seen.h).sum() / objective(many, seen.h).sum() - 1) < 0.02


def test_finequant_grows_finer_as_the_gain_asked_for_falls() -> None:
    w = weights(k=512)
    groups = []
    for gain in (0.9, 0.05, 0.0):
        text = FineQuant(gain=gain).choose(w, "int4")
        groups.append(Form(parse_encoding(text), 512).group())
    assert groups == sorted(groups, reverse=True)
    assert groups[0] == 512 and groups[-1] == 64
    even = np.sign(np.random.default_rng(0).standard_normal((8, 512))).astype(np.float32)
    assert FineQuant().choose(even, "int4") == "int4(channel)"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_levels_round_as_the_encoding_does(encoding: str) -> None:
    w, e = weights(), parse_encoding(encoding)
    form, streams = Form(e, 128), e.encode(w)
    codes, values = code_values_of(form, streams, len(w)).nearest(w)
    assert all((v == streams[n]).all() for n, v in form.split(codes).items())
    np.testing.assert_allclose(values, e.decode(streams), rtol=1e-6)


def test_zero_weights_stay_zero() -> None:
    w = np.zeros((16, 64), np.float32)
    for text in ("clip(int4(group=32))", "hqq(int4(group=32))", "gptq(int4(group=32))"):
        assert (error(text, w, statistics(64)) == 0).all()


# ------------------------------------------------------------------ text
@pytest.mark.parametrize(
    "text",
    [
        "clip(int4(group=32))",
        "gptq(clip(int4(group=128), steps=10), act_order=true)",
        "hqq(int8(channel), p=0.5)",
    ],
)
def test_text_round_trip(text: str) -> None:
    solver, encoding = parse_stored(text)
    assert isinstance(solver, Solver) and solver.text(encoding) == text
    check_stored(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "gtpq(int4(group=32))",
            r"unknown solver 'gtpq' in .*; solvers: .*clip, finequant, flsq, gptq, hqq.*; encodings: bf16",
        ),
        ("fslq(codebook3)", r"unknown solver 'fslq' in .*; solvers: .*flsq, gptq"),
        ("gptq()", r"gptq\(\): a solver needs an encoding, as in gptq\(int4\(group=32\)\)"),
        ("gptq(int4, dump=1)", "unknown option 'dump=1'; gptq takes damp, block, act_order"),
        ("gptq(int4, act_order=1)", "act_order must be true or false, got '1'"),
        ("hqq(int4, p=x)", "p must be a number, got 'x'"),
        ("clip(int44)", "unknown encoding 'int44'"),
    ],
)
def test_text_errors(text: str, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        check_stored(text)


def test_gptq_needs_statistics_and_codes_need_scales() -> None:
    with pytest.raises(EncodingError, match="gptq needs statistics of the inputs: calibrate on a text"):
        solve("gptq(int4(group=32))", weights())
    with pytest.raises(EncodingError, match="clip: bf16 has no codes with scales that a solver could choose"):
        solve("clip(bf16)", weights())


# ------------------------------------------------------------------ weights of a module
def stored(values: F32, by: str = "") -> tuple[WeightStore, Weight]:
    source = Stored("memory", "w")
    e = parse_encoding(parse_stored(by)[1])
    solved = Apply(SOLVED, (source,), (("by", by),)) if parse_stored(by)[0] else source
    return WeightStore(memory={"w": values}), Weight("a.w", TensorType("f32", values.shape, e), solved)


def test_streamed_pieces_equal_the_whole() -> None:
    w = weights(rows=48)
    store, weight = stored(w, "hqq(int4(group=32))")
    e, streams = solve("hqq(int4(group=32))", w)
    assert b"".join(weight_bytes(store, weight)) == e.pack(streams, w.shape).tobytes()
    np.testing.assert_array_equal(stored_values(store, weight), e.decode(streams))


def test_bad_values_are_counted() -> None:
    w = weights()
    w[3, 4], w[5, 6], w[7, 8] = np.nan, np.inf, -np.inf
    store, weight = stored(w, "int4(group=32)")
    with pytest.raises(RefusedError) as why:
        b"".join(weight_bytes(store, weight))
    assert str(why.value).startswith(
        "weight @a.w: refused: contains 1 NaN and 2 infinite values, the first at ["
    )
    assert str(why.value).endswith("\n  help: repair the checkpoint: no encoding can store them")


def test_calibrated_solvers_ask_for_a_text(tmp_path: Path) -> None:
    w = weights()
    store, weight = stored(w, "gptq(int4(group=32))")
    with pytest.raises(RefusedError, match="--calibrate FILE"):
        stored_values(store, weight)
    e = parse_encoding("int4(group=32)")
    write_safetensors(tmp_path / "a.safetensors", e.encode(w))
    found = tuple((name, Stored(f"{FOLDER}a.safetensors", name)) for name in e.encode(w))
    weight = replace(weight, source=with_streams(values_of(weight.source), "gptq(int4(group=32))", found))
    with pytest.raises(RefusedError, match="no calibration directory is given"):
        stored_values(store, weight)
    store.solved = tmp_path
    np.testing.assert_array_equal(stored_values(store, weight), e.decode(e.encode(w)))
    np.testing.assert_array_equal(
        e.decode(encoded(store, weight, e, w[4:12], 4)), e.decode(e.encode(w[4:12]))
    )
    assert stored_values(RandomWeights(0), weight).shape == w.shape
