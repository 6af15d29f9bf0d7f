"""CPU levels from feature flags, thread counts from affinity and quota, and the machine-limits benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilewright.runtime import cpu
from tilewright.runtime.cpu import LEVEL_FEATURES, available_levels, missing_features, parse_flags
from tilewright.runtime.limits import LimitsError, has_probe, measure_limits


def test_flags_are_read_from_either_spelling() -> None:
    assert parse_flags("processor : 0\nflags\t\t: fpu avx2 fma\n\nprocessor : 1\nflags : fpu\n") == {
        "fpu",
        "avx2",
        "fma",
    }
    assert parse_flags("Features\t: fp asimd\n") == {"fp", "asimd"}
    assert parse_flags("") == frozenset()


def test_levels_grow_and_missing_features_are_named() -> None:
    names = list(LEVEL_FEATURES)
    assert names == ["baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16"]
    assert all(set(LEVEL_FEATURES[a]) < set(LEVEL_FEATURES[b]) for a, b in zip(names, names[1:]))
    haswell = {"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "popcnt"}
    assert missing_features("avx2", haswell) == []
    assert missing_features("avx512_vnni", haswell) == [
        "avx512f",
        "avx512bw",
        "avx512dq",
        "avx512vl",
        "avx512_vnni",
    ]
    assert available_levels(haswell) == ["avx2", "baseline"]
    with pytest.raises(KeyError, match="unknown level 'avx9'; known: baseline, avx2"):
        missing_features("avx9")


def test_threads_follow_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "affinity", lambda: [0, 1, 2, 3])
    for quota, threads in ((None, 4), (0.5, 1), (2.0, 2), (2.5, 3), (64.0, 4)):
        monkeypatch.setattr(cpu, "cgroup_quota", lambda q=quota: q)
        assert cpu.default_threads() == threads


def test_limits_are_measured_by_a_library_that_is_built_when_none_is_given() -> None:
    limits = measure_limits(threads=1, seconds=0.1, mib=32)
    assert limits.dram_gb_s > 0.1 and limits.f32_gflop_s > 0.1 and limits.threads == 1
    assert list(limits.as_dict()) == ["dram_gb_s", "f32_gflop_s", "bf16_gflop_s", "int8_gop_s", "threads"]


def test_limits_say_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.so"
    other.write_bytes(b"no library")
    assert not has_probe(other)
    with pytest.raises(
        LimitsError,
        match=r"other\.so contains no benchmark of the machine's limits .*; compile the model again",
    ):
        measure_limits(library=other)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        LimitsError, match=r"no C\+\+ compiler found to build the benchmark of the machine's limits"
    ):
        measure_limits()
