"""Whether a library is called as the manifest says: the step protocol of a language model.

In: the manifest's protocol and caches, an open library. Out: nothing, or ArtifactError. The numbers are the
compiler's (`ir/plan/step.py`); here they are only compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.runtime.errors import ArtifactError
from tilewright.runtime.library import Library
from tilewright.runtime.manifest import StateEntry, StepEntry

HINT = "compile the model again"


def check_step(step: StepEntry, states: Sequence[StateEntry], have: Library) -> None:
    """ArtifactError if the library groups tokens into other query blocks than the manifest says, or a cache
    does not hold whole slices of attention."""
    where = str(have.file)
    if step.block != have.block:
        message = (
            f"the manifest says query blocks of {step.block} rows, the library has blocks of {have.block}"
        )
        raise ArtifactError(message, where, HINT)
    if step.columns != have.block_columns:
        said, has = (", ".join(c) or "none" for c in (step.columns, have.block_columns))
        message = f"the manifest says query blocks of the columns {said}, the library fills {has}"
        raise ArtifactError(message, where, HINT)
    for s in states:
        if s.context % step.slice:
            message = (
                f"cache {s.name} holds {s.context} positions, which are not whole slices of {step.slice}"
            )
            raise ArtifactError(message, where, HINT)
