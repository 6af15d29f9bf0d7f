"""Seeded mutations of an artifact; as a program, opens and runs each mutant in a process that may crash.

`python mutate.py ARTIFACT WORKDIR FIRST COUNT` prints one line per seed: the seed, then what came of it. Half
of the mutants are sealed again with right hashes; native libraries are then left alone, for native code is
trusted like a program.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import sys
from pathlib import Path

PROMPT, NEW = [72, 105, 33], 4
ABSURD: tuple[object, ...] = (
    -1, 0, 1, 7, 63, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63, 2**70, -(2**70),
    1e308, -0.5, True, None, "", "x" * 100000, "../../etc/passwd",
    "/dev/zero", "lib/baseline.so", "weights.bin", "\u0000", "\ud800", [], {}, [[]] * 50, [2**70] * 3,
    {"a": {}}, ["T", "R"],
)  # fmt: skip


def mutate(folder: Path, seed: int) -> str:
    """Damage the artifact in place; says what was done."""
    rng = random.Random(seed)
    sealed = seed % 2 == 1
    body = json.loads((folder / "manifest.json").read_text())
    names = sorted(n for n in body["files"] if not (sealed and n.startswith("lib/")))
    what = rng.choice(
        ("flip", "flip", "cut", "cut", "swap", "noise", "grow", "delete", "field", "field", "field", "header")
    )
    name = rng.choice(names)
    if rng.random() < 0.3:
        name = "weights.bin"
    if what == "field":
        what += " " + _field(body, rng)
    elif rng.random() < 0.15 and what in ("flip", "cut", "noise"):
        _damage(folder / "manifest.json", what, rng)
        return f"{what} manifest.json"
    elif what == "swap":
        other = rng.choice(names)
        a, b = (folder / name).read_bytes(), (folder / other).read_bytes()
        _write(folder / name, b)
        _write(folder / other, a)
        what += f" {name} {other}"
    elif what == "header":
        data = bytearray((folder / "weights.bin").read_bytes())
        data[8:16] = rng.choice((0, 1, 2**31, 2**63 - 1, 2**64 - 1)).to_bytes(8, "little")
        _write(folder / "weights.bin", bytes(data))
    else:
        _damage(folder / name, what, rng)
        what += f" {name}"
    if sealed:
        _seal(folder, body)
        return what + " (sealed)"
    if what.startswith("field"):
        _write(folder / "manifest.json", _text(body))
    return what


def _damage(path: Path, what: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if what == "delete":
        path.unlink()
        return
    if what == "flip":
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif what == "cut":
        del data[rng.randrange(len(data) + 1) :]
    elif what == "noise":
        at = rng.randrange(len(data) + 1)
        data[at : at + 64] = rng.randbytes(64)
    else:
        data += rng.choice((b"\0", rng.randbytes(100), bytes(1 << 16)))
    _write(path, bytes(data))


def _field(body: dict[str, object], rng: random.Random) -> str:
    """One value somewhere in the manifest becomes absurd."""
    node: object = body
    trail: list[str] = []
    while isinstance(node, dict | list) and node:
        key = rng.choice(sorted(node)) if isinstance(node, dict) else rng.randrange(len(node))
        trail.append(str(key))
        inner = node[key]  # type: ignore[index, call-overload]
        if not (isinstance(inner, dict | list) and inner) or rng.random() < 0.15:
            node[key] = rng.choice(ABSURD)  # type: ignore[index, call-overload]
            break
        node = inner
    return ".".join(trail)


def _seal(folder: Path, body: dict[str, object]) -> None:
    from tilewright.runtime.manifest import seal

    files = body.get("files")
    for name, entry in files.items() if isinstance(files, dict) else ():
        path = folder / name
        if (
            isinstance(entry, dict)
            and len(name) < 200
            and "\0" not in name
            and path.is_file()
            and folder in path.resolve().parents
        ):
            data = path.read_bytes()
            entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    with contextlib.suppress(ValueError, UnicodeError):
        body["seal"] = seal(body)
    _write(folder / "manifest.json", _text(body))


def _text(body: object) -> bytes:
    return json.dumps(body).encode("utf-8", "replace")


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # the other copies share the file by hard link
    path.write_bytes(data)


def outcome(folder: Path) -> str:
    """`error`, or the ids it generates; any other exception is printed by the interpreter and fails the
    run."""
    from tilewright.runtime.errors import RuntimeFault
    from tilewright.runtime.model import load

    try:
        m = load(folder, threads=1)
        got = m.generate(PROMPT, max_new_tokens=NEW)
        m.generate("text", max_new_tokens=2, temperature=1.0, seed=1, stop="\n")
        return " ".join(map(str, got.ids))
    except RuntimeFault as e:
        assert len(str(e)) < 4000, "an error of absurd length"
        return f"error {type(e).__name__}"


def intact(folder: Path) -> bool:
    """Whether a full check finds nothing."""
    from tilewright.runtime.artifact import verify_artifact
    from tilewright.runtime.errors import RuntimeFault

    try:
        verify_artifact(folder)
        return True
    except RuntimeFault:
        return False


def main(artifact: Path, work: Path, first: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    for seed in range(first, first + count):
        target = work / f"m{seed}.tw"
        shutil.copytree(artifact, target, copy_function=os.link)
        what = mutate(target, seed)
        print(f"{seed} | {what} |", end=" ", flush=True)
        print(outcome(target), "|", "intact" if intact(target) else "damaged", flush=True)
        shutil.rmtree(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
