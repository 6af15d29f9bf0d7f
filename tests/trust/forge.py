"""An artifact whose program was written anew by somebody who knows all about seals, hashes and content ids.

In: an artifact folder and the text of a program. Out: the folder changed in place, every check of integrity
passing.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

from tilewright.artifact.contents import Contents, make_manifest
from tilewright.backends.base import Binary
from tilewright.backends.storage import HEADER, content_id, place_weights
from tilewright.ir.errors import RefusedError
from tilewright.ir.plan.core import Program
from tilewright.ir.text.plan_parser import parse_program
from tilewright.passes.record import Record, Stage
from tilewright.runtime.manifest import MAGIC, FileEntry, parse_manifest, seal

#: bytes of weights that are written for a mutant
LARGEST = 1 << 30


def program_file(folder: Path) -> Path:
    """The text that `rebuild` reads."""
    return folder / "ir" / f"{json.loads((folder / 'manifest.json').read_text())['stages'][-1]['name']}.ir"


def forge(folder: Path, text: str) -> None:
    """Put the text in, and make everything else agree with it. Raises what parsing and placing the program
    raise."""
    program = parse_program(text)
    id, (_, total) = content_id(program), place_weights(program.weights)
    if total > LARGEST:
        raise RefusedError(f"weights of {total} bytes are not forged", str(folder))
    _write(program_file(folder), text.encode("utf-8", "surrogatepass"))
    weights = folder / "weights.bin"
    data = weights.read_bytes()[HEADER:][: max(total - HEADER, 0)].ljust(max(total - HEADER, 0), b"\x01")
    _write(weights, MAGIC + total.to_bytes(8, "little") + id.encode() + bytes(HEADER - 48) + data)
    _write(folder / "manifest.json", _manifest(folder, program, id, total).encode())


def _manifest(folder: Path, program: Program, id: str, total: int) -> str:
    """The manifest that our own writer would make, or the old one with the parts exchanged that rebuilding
    looks at."""
    old = json.loads((folder / "manifest.json").read_text())
    files = {
        n: FileEntry(len(b), hashlib.sha256(b).hexdigest())
        for n in old["files"]
        for b in [(folder / n).read_bytes()]
    }
    levels = tuple(Binary(v["name"], tuple(v["features"]), Path(v["library"]), "") for v in old["levels"])
    stages = tuple(Stage(re.sub(r"^\d+_", "", s["name"]), program) for s in old["stages"])
    try:
        return make_manifest(Contents(Record(stages), levels), files).to_json()
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError):
        body = {
            **old,
            "id": id,
            "weights_bytes": total,
            "weights": [],
            "files": {n: asdict(f) for n, f in files.items()},
        }
        text = json.dumps({**body, "seal": seal(body)})
        parse_manifest(text.encode())
        return text


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # copies of the artifact share files by hard link
    path.write_bytes(data)
