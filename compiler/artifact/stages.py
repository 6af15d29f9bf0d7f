"""The stages of a compile as an artifact lists them, and `notes.json`: what each pass applied and declined.

In: the record of a compile, or an artifact. Out: manifest entries, the file's text, or the notes by stage. No
times: an artifact depends only on the model, the recipe and the versions, so that two compiles give the same
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tilewright.ir.graph.core import Location
from tilewright.passes.base import Note
from tilewright.passes.record import Record
from tilewright.runtime.artifact import Artifact
from tilewright.runtime.errors import ArtifactError
from tilewright.runtime.json_fields import DAMAGED, Node
from tilewright.runtime.manifest import StageEntry

#: the file's name in the artifact
NOTES = "notes.json"
#: most characters of a place, a reason or a file name
LONGEST = 1 << 16

#: notes in order, by the numbered name of the stage that the pass made
Notes = Mapping[str, Sequence[Note]]


def stage_entries(record: Record) -> tuple[StageEntry, ...]:
    """One entry for each stage of a compile, in order."""
    return tuple(StageEntry(f"{n:03d}_{s.name}", s.form, s.made_by) for n, s in enumerate(record.stages))


def notes_by_stage(record: Record) -> Notes:
    """The notes of every pass that made some."""
    return {
        entry.name: stage.notes
        for entry, stage in zip(stage_entries(record), record.stages, strict=True)
        if stage.notes
    }


def notes_text(record: Record) -> str:
    """JSON: by stage, one object per note."""
    found = {stage: [_fields(n) for n in notes] for stage, notes in notes_by_stage(record).items()}
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def _fields(n: Note) -> dict[str, object]:
    line = {} if n.loc is None else {"file": n.loc.file, "line": n.loc.line}
    found = {"pass": n.pass_name, "rewrite": n.rewrite, "applied": n.applied}
    return {**found, "at": n.what, "reason": n.reason, **line}


def notes_of(artifact: Artifact) -> Notes:
    """The notes that an artifact holds; none if it was written without them. ArtifactError if the file is
    damaged."""
    text = artifact.text(NOTES)
    if text is None:
        return {}
    where = str(artifact.file(NOTES))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ArtifactError(f"not readable as JSON ({str(e)[:120]})", where, DAMAGED) from None
    node = Node.of(found, where)
    return {stage: tuple(map(_note, node.nodes(stage))) for stage in node.value}


def _note(node: Node) -> Note:
    loc = Location(node.text("file", LONGEST), node.integer("line")) if "file" in node.value else None
    name, rewrite = node.text("pass"), node.text("rewrite")
    return Note(
        name, rewrite, node.flag("applied"), node.text("at", LONGEST), node.text("reason", LONGEST), loc
    )
