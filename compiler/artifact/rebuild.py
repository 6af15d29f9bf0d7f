"""Libraries built here from the IR that an artifact carries, for those who trust the text but not the binary.

In: an artifact whose files have their hashes. Out: the path of a library for this CPU, in the cache. The IR
is parsed and verified before anything is built; the artifact's own libraries and sources are not read.
"""

from __future__ import annotations

from pathlib import Path

from tilewright.artifact.libraries import build_libraries
from tilewright.backends.step import check_step
from tilewright.backends.storage import content_id, state_streams
from tilewright.ir.errors import RefusedError
from tilewright.ir.plan.core import Program
from tilewright.ir.text.plan_parser import parse_program
from tilewright.passes.driver import verify_ir
from tilewright.runtime.artifact import Artifact

COMPILE_AGAIN = "compile the model again"


def rebuild(artifact: Artifact) -> Path:
    """The library of this machine's best level. Raises ParseError, VerifyError, RefusedError and
    BuildError."""
    return build_libraries(program_of(artifact), "native")[0].library


def program_of(artifact: Artifact) -> Program:
    """The placed program in the artifact's last stage, verified; it must be the one that the weights were
    placed for."""
    if not artifact.manifest.stages:
        raise RefusedError("the artifact contains no IR to rebuild from", str(artifact.path), COMPILE_AGAIN)
    name = artifact.manifest.stages[-1].file
    program = parse_program(artifact.text(name) or "", str(artifact.file(name)))
    if content_id(program) != artifact.manifest.id:
        raise RefusedError(
            "its IR does not match the layout of its weights", str(artifact.file(name)), COMPILE_AGAIN
        )
    verify_ir(program)
    check_step(program)
    for state in program.states:
        state_streams(state)
    return program
