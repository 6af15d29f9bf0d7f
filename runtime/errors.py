"""Errors of the runtime: what happened, where, and what to do. Independent of the rest."""

from __future__ import annotations


class RuntimeFault(Exception):
    """Base. `message`: expected and got; `where`: file, field or argument; `hint`: what to do."""

    kind = "error"

    def __init__(self, message: str, where: str = "", hint: str = "") -> None:
        super().__init__(message, where, hint)
        self.message, self.where, self.hint = message, where, hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.message}" + (f"\n  help: {self.hint}" if self.hint else "")


class ArtifactError(RuntimeFault):
    """An artifact that is damaged, of another version, or made for another machine."""

    kind = "artifact error"


class SessionError(RuntimeFault):
    """A request that a session or a model cannot carry out: too long, unknown sequence, wrong shape."""

    kind = "session error"
