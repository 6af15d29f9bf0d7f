"""The four kinds of error that users see: parse, verify, unsupported, refused.

In: what was expected and got, where, and what to do about it. Out: exceptions whose `str()` contains all of
it, with the source line marked if there is one. Independent of the IRs.
"""

from __future__ import annotations


class TilewrightError(ValueError):
    """Base of the four kinds. `message`: expected and got; `where`: the place, in words; `hint`: what to
    do."""

    kind = "error"

    def __init__(self, message: str, where: str = "", hint: str = "") -> None:
        super().__init__(message, where, hint)
        self.message, self.where, self.hint = message, where, hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  help: {self.hint}" if self.hint else ""
        return f"{place}{self.kind}: {self.message}{self._quote()}{advice}"

    def _quote(self) -> str:
        return ""


class TilewrightWarning(UserWarning):
    """Something was done another way than asked, and works; the message says what and why."""


class ParseError(TilewrightError):
    """Text that is not a program. `line` and `column` count from 1; `source` is the whole line they point
    into."""

    kind = "parse error"

    def __init__(
        self,
        message: str,
        file: str = "<text>",
        line: int = 0,
        column: int = 0,
        source: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, f"{file}:{line}:{column}" if line else file, hint)
        self.file, self.line, self.column, self.source = file, line, column, source

    def _quote(self) -> str:
        return underline(self.source, self.column) if self.source and self.column else ""


class VerifyError(TilewrightError):
    """A program that breaks a numbered invariant. `source` is the statement at fault, as text."""

    kind = "verify error"

    def __init__(
        self, message: str, where: str = "", hint: str = "", invariant: int = 0, source: str = ""
    ) -> None:
        super().__init__(f"[{invariant}] {message}" if invariant else message, where, hint)
        self.invariant, self.source = invariant, source

    def _quote(self) -> str:
        return (
            f"\n    {self.source.strip()}\n    {'^' * min(len(self.source.strip()), 100)}"
            if self.source
            else ""
        )


class UnsupportedError(TilewrightError):
    """A meaningful program that this compiler, target or version has no way to carry out."""

    kind = "unsupported"


class RefusedError(TilewrightError):
    """Input that is understood and declined: damaged, unsafe, too large, or made for something else."""

    kind = "refused"


def underline(source: str, column: int, width: int = 100) -> str:
    """The source line with a caret below column (from 1); long lines are cut to a window around it."""
    start = max(0, column - 1 - width // 2)
    shown = "".join(c if c.isprintable() else "?" for c in source[start : start + width])
    return f"\n    {shown}\n    {' ' * (column - 1 - start)}^"


def source_line(text: str, line: int) -> str:
    """Line number `line` (from 1) of a text, empty if there is none."""
    lines = text.split("\n", line)
    return lines[line - 1].replace("\t", " ") if 0 < line <= len(lines) else ""
