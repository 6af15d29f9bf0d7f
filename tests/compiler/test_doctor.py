"""What `doctor` reports: JSON, and for each thing missing what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tilewright.runtime.busy import Load
from tilewright.runtime.cpu import LEVEL_FEATURES
from tilewright.tools import doctor


def test_the_report_is_json_and_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    report = json.loads(doctor.render(as_json=True))
    assert list(report) == [
        "system",
        "cpu",
        "threads",
        "load",
        "compilers",
        "packages",
        "cache",
        "problems",
    ]
    assert (
        list(report["cpu"]["levels"]) == list(LEVEL_FEATURES) and report["cpu"]["levels"]["baseline"]["runs"]
    )
    assert report["cache"] == {
        **report["cache"],
        "folder": str(tmp_path / "cache"),
        "bytes": 0,
        "files": 0,
        "writable": True,
    }


def test_the_text_names_the_parts() -> None:
    text = doctor.render()
    assert all(title in text for title in ("Machine", "CPU levels", "Compilers", "Packages"))


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "current_load", lambda: Load(2, 0.97, 0.0))
    text = "other processes keep 1.0 of 2 processors busy: measure speed when they are done"
    assert doctor.collect()["load"] == {"others": 0.97, "stolen": 0.0, "busy": True, "text": text}
    assert "1.0 of 2 processors busy: measure" in " ".join(doctor.render().split())
    monkeypatch.setattr(doctor, "current_load", lambda: Load(2, 0.02, 0.0))
    assert doctor.collect()["load"]["text"] == "other processes keep 0.0 of 2 processors busy"


def test_a_missing_compiler_and_package_come_with_advice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "torch" else real(name))
    assert doctor.collect()["problems"] == [
        {
            "what": "no C++ compiler runs",
            "do": (
                "install a C++ compiler (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) "
                "or set CXX to its path"
            ),
        },
        {
            "what": "torch is not installed (for compiling models)",
            "do": (
                "pip install 'tilewright[compile]' (in a checkout: pip install -c constraints.txt "
                "'.[compile]')"
            ),
        },
    ]


def test_a_compiler_without_openmp_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "plain"
    fake.write_text("#!/bin/sh\n[ $1 = --version ] && echo plain 1.0\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    report = doctor.collect()
    assert report["compilers"] == [
        {"command": str(fake), "path": str(fake), "version": "plain 1.0", "openmp": False}
    ]
    assert report["problems"][0]["what"] == f"{fake} cannot build OpenMP code"


def test_a_cache_below_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = doctor.cache_state(tmp_path / "file" / "cache")
    assert not report["writable"] and report["free_bytes"] > 0 and os.path.isabs(report["folder"])
