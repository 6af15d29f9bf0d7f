"""What op records let rewrites rely on, against the ops' meanings on numbers: linearity, moves, gains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.ir.op_samples import Array, Sample, f, run, samples
from tilewright.ir.ops import OPS
from tilewright.ir.ops.build import complete_attrs

FLOAT = [s for s in samples() if s.args and s.args[-1].size]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def _has_floats(s: Sample, group: Sequence[int]) -> bool:
    results = run(s.op, s.args, s.attrs)
    return all(x.dtype == np.float32 for x in (*(s.args[n] for n in group if n < len(s.args)), *results))


def _groups(kind: str) -> list[tuple[Sample, tuple[int, ...]]]:
    found = [(s, g) for s in FLOAT for g in getattr(OPS[s.op], kind) if _has_floats(s, g)]
    assert found
    return found


def _with(s: Sample, group: Sequence[int], new: Sequence[Array]) -> tuple[Array, ...]:
    args = list(s.args)
    for n, x in zip(group, new, strict=True):
        args[n] = x
    return run(s.op, args, s.attrs)


@pytest.mark.parametrize(("s", "group"), _groups("linear"), ids=str)
def test_a_result_is_linear_in_each_group(s: Sample, group: tuple[int, ...]) -> None:
    group = tuple(n for n in group if n < len(s.args))
    one = [s.args[n] for n in group]
    other = [f(*x.shape, seed=9) for x in one]
    both = _with(s, group, [np.asarray(2 * a + b, np.float32) for a, b in zip(one, other, strict=True)])
    for x, y, z in zip(_with(s, group, one), _with(s, group, other), both, strict=True):
        np.testing.assert_allclose(z, 2 * x + y, **CLOSE)  # type: ignore[arg-type]


@pytest.mark.parametrize(("s", "group"), _groups("homogeneous"), ids=str)
def test_a_positive_factor_goes_through(s: Sample, group: tuple[int, ...]) -> None:
    scaled = _with(s, group, [np.asarray(3 * s.args[n], np.float32) for n in group])
    for x, y in zip(run(s.op, s.args, s.attrs), scaled, strict=True):
        np.testing.assert_allclose(y, 3 * x, **CLOSE)  # type: ignore[arg-type]


@pytest.mark.parametrize("s", [s for s in FLOAT if OPS[s.op].moves and not OPS[s.op].expr], ids=str)
def test_a_move_makes_no_new_numbers(s: Sample) -> None:
    for x in run(s.op, s.args, s.attrs):
        assert np.isin(x, np.concatenate([a.reshape(-1) for a in s.args]).astype(x.dtype)).all()


@pytest.mark.parametrize("s", [s for s in FLOAT if OPS[s.op].taken and _has_floats(s, (0,))], ids=str)
def test_places_are_taken_from_where_the_record_says(s: Sample) -> None:
    """A change of one place of the operand reaches the places of the result that are taken from it."""
    record = OPS[s.op]
    full, ((operand,),) = complete_attrs(record, s.types, s.attrs), record.linear
    before = run(s.op, s.args, s.attrs)
    for n, result in enumerate(before):
        assert record.taken is not None
        found = record.taken(s.types, full, n)
        assert found is not None
        axis, places = found
        assert len(places) == result.shape[axis]
        for i in range(s.args[operand].shape[axis]):
            x = np.array(s.args[operand])
            x[(slice(None),) * axis + (i,)] += 1
            changed = np.moveaxis(_with(s, (operand,), [x])[n] != result, axis, 0)
            assert [c.any() for c in changed] == [p == i for p in places]


@pytest.mark.parametrize("s", [s for s in FLOAT if OPS[s.op].gain and len(s.args) == 1], ids=str)
def test_a_gain_multiplies_what_a_norm_gives(s: Sample) -> None:
    gain, (x,) = OPS[s.op].gain, s.args
    assert gain is not None
    full = complete_attrs(OPS[s.op], s.types, s.attrs)
    shape = x.shape[int(str(full["axis"])) :]
    weight, bias = f(*shape, seed=3), f(*shape, seed=4)
    offset = float(str(full[gain.offset])) if gain.offset else 0.0
    (plain,) = run(s.op, (x,), s.attrs)
    args = (x, weight) if len(OPS[s.op].operands) == 2 else (x, weight, bias)
    (got,) = run(s.op, args, s.attrs)
    want = plain * (offset + weight) + (bias if len(args) == 3 else 0)
    np.testing.assert_allclose(got, want, **CLOSE)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [n for n, op in OPS.items() if op.gain])
def test_a_norm_that_turns_commutes_with_rotations(name: str) -> None:
    gain, x = OPS[name].gain, f(5, 16)
    q = np.linalg.qr(f(16, 16, seed=1))[0].astype(np.float32)
    turned, plain = (run(name, (y.astype(np.float32),), {"eps": 1e-5, "axis": -1})[0] for y in (x @ q, x))
    assert gain is not None and np.allclose(turned, plain @ q, atol=1e-4) is gain.turns
