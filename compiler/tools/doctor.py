"""What this machine offers to Tilewright and what is missing: processor, compilers, packages, cache, threads.

In: nothing. Out: a JSON-able dict (`collect`) and its rendering. Imports none of the packages it reports on.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tilewright.backends.cache import cache_root
from tilewright.backends.registry import backend, known_backends
from tilewright.packages import PACKAGES, problem, version_of
from tilewright.runtime.busy import current_load
from tilewright.runtime.cpu import (
    LEVEL_FEATURES,
    affinity,
    available_levels,
    cgroup_quota,
    cpu_name,
    default_threads,
    missing_features,
)

_INSTALL = (
    "install a C++ compiler (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or set "
    "CXX to its path"
)
_OPENMP = (
    "install OpenMP for this compiler (for g++ libgomp comes with it; for clang: apt install libomp-dev)"
)


def collect() -> dict[str, Any]:
    """The whole report. `problems` lists what is in the way, each with what to do about it; empty: everything
    works."""
    report: dict[str, Any] = {
        "system": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "tilewright": version_of("tilewright"),
        },
        "cpu": _cpu(),
        "threads": {"default": default_threads(), "affinity": affinity(), "cgroup_quota": cgroup_quota()},
        "load": _load(),
        "compilers": compilers(),
        "packages": {name: _package(name) for name in PACKAGES},
        "cache": cache_state(cache_root()),
    }
    report["problems"] = problems(report)
    return report


def _cpu() -> dict[str, Any]:
    levels = {
        name: {"runs": not missing_features(name), "missing": missing_features(name)}
        for name in LEVEL_FEATURES
    }
    return {
        "name": cpu_name(),
        "machine": platform.machine(),
        "levels": levels,
        "best": available_levels()[0],
    }


def _load() -> dict[str, Any]:
    """How busy the machine is with other work at this moment, as values and in words."""
    load = current_load()
    if load is None:
        return {"others": None, "stolen": None, "busy": None, "text": "not known"}
    text = load.sentence() + (": measure speed when they are done" if load.busy else "")
    return {**load.as_dict(), "text": text}


def compilers() -> list[dict[str, Any]]:
    """Every candidate: command, path, first line of its version, whether it builds OpenMP code. The first
    that runs is used."""
    own = os.environ.get("CXX")
    wanted = [[c] for name in known_backends() for c in backend(name).compilers]
    commands = [shlex.split(own)] if own else wanted
    return [_compiler(words) for words in commands if words]


def _compiler(words: list[str]) -> dict[str, Any]:
    path = shutil.which(words[0])
    if path is None:
        return {"command": shlex.join(words), "path": None, "version": None, "openmp": False}
    version = _run([path, *words[1:], "--version"])
    lines = (version or "").splitlines()
    return {
        "command": shlex.join(words),
        "path": path,
        "version": lines[0] if lines else None,
        "openmp": _openmp([path, *words[1:]]),
    }


def _openmp(command: list[str]) -> bool:
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text('#include <omp.h>\nextern "C" int probe() { return omp_get_max_threads(); }\n')
        flags = [
            "-std=c++17",
            "-O1",
            "-fopenmp",
            "-shared",
            "-fPIC",
            str(source),
            "-o",
            str(Path(folder) / "probe.so"),
        ]
        return _run([*command, *flags]) is not None


def _run(command: list[str]) -> str | None:
    """Standard output; None: it could not be run, failed, or took longer than half a minute."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _package(name: str) -> dict[str, str | None]:
    """`problem` and `get` say why the version does not do and what does; None: it does."""
    version, wanted = version_of(name), PACKAGES[name]
    found = problem(name, version)
    why, get = (found.message, found.hint) if found else (None, None)
    return {"version": version, "range": wanted.range, "for": wanted.use, "problem": why, "get": get}


def cache_state(root: Path) -> dict[str, Any]:
    """Where compiled kernels are kept, how much they take, whether they can be written, and room on that
    disk."""
    size, files = 0, 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                size, files = size + os.lstat(os.path.join(folder, name)).st_size, files + 1
            except OSError:
                continue  # removed meanwhile
    existing = next(p for p in (root, *root.parents) if p.exists())
    usable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return {
        "folder": str(root),
        "bytes": size,
        "files": files,
        "writable": usable,
        "free_bytes": shutil.disk_usage(existing).free,
    }


def problems(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """What is missing, and how to install it."""
    found = [c for c in report["compilers"] if c["version"]]
    out = []
    if not found:
        out.append(("no C++ compiler runs", _INSTALL))
    elif not found[0]["openmp"]:
        out.append((f"{found[0]['command']} cannot build OpenMP code", _OPENMP))
    if not report["cache"]["writable"]:
        out.append(
            (
                f"cache folder {report['cache']['folder']} cannot be written",
                "make it writable or set TILEWRIGHT_CACHE to a folder that is",
            )
        )
    out += [(p["problem"], p["get"]) for p in report["packages"].values() if p["problem"]]
    return [{"what": what, "do": do} for what, do in out]


def tables(report: Mapping[str, Any]) -> Group:
    """The report as tables for a terminal."""
    parts = [
        _system_table(report),
        _level_table(report),
        _compiler_table(report),
        _package_table(report),
    ]
    if not report["problems"]:
        return Group(*parts, Text("everything that Tilewright needs is installed", style="green"))
    return Group(*parts, *[Text.assemble((f"{p['what']}: ", "yellow"), p["do"]) for p in report["problems"]])


def render(as_json: bool = False) -> str:
    """The report as text for a terminal, or as JSON."""
    report = collect()
    if as_json:
        return json.dumps(report, indent=2)
    console = Console(width=min(shutil.get_terminal_size((110, 40)).columns, 140))
    with console.capture() as text:
        console.print(tables(report))
    return text.get().rstrip("\n")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for c in columns:
        table.add_column(c, overflow="fold")
    return table


def _system_table(report: Mapping[str, Any]) -> Table:
    table = _table("Machine", "", "")
    threads, cache = report["threads"], report["cache"]
    quota = "no limit" if threads["cgroup_quota"] is None else f"{threads['cgroup_quota']:g}"
    rows = {
        "system": "{platform}, Python {python}, tilewright {tilewright}".format(**report["system"]),
        "cpu": f"{report['cpu']['name']} ({report['cpu']['machine']})",
        "threads": f"{threads['default']} (affinity {len(threads['affinity'])}, cgroup quota {quota})",
        "load": report["load"]["text"],
        "cache": f"{cache['folder']}: {cache['bytes'] / 1e6:.1f} MB in {cache['files']} files, "
        + ("writable" if cache["writable"] else "NOT writable") + (
        f", {cache['free_bytes'] / 1e9:.1f} GB free"),
    }  # fmt: skip
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def _level_table(report: Mapping[str, Any]) -> Table:
    table = _table("CPU levels", "level", "runs here", "missing")
    for name, level in report["cpu"]["levels"].items():
        best = " (used)" if name == report["cpu"]["best"] else ""
        table.add_row(name + best, "yes" if level["runs"] else "no", ", ".join(level["missing"]))
    return table


def _compiler_table(report: Mapping[str, Any]) -> Table:
    table = _table("Compilers", "command", "version", "OpenMP")
    for c in report["compilers"]:
        table.add_row(
            c["command"], c["version"] or "not found", ("yes" if c["openmp"] else "no") if c["path"] else ""
        )
    return table


def _package_table(report: Mapping[str, Any]) -> Table:
    table = _table("Packages", "package", "version", "works with", "for", "how to install it")
    for name, p in report["packages"].items():
        table.add_row(name, p["version"] or "not installed", p["range"], p["for"], p["get"] or "")
    return table
