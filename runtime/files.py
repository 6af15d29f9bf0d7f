"""Reads files given by the user: regular files only, since reading a pipe or a device may never end.

In: a path. Out: its bytes, or an open file. Raises OSError; `Unreadable` is the one for what is there but is
no file to read.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip
Name = str | os.PathLike[str]


class Unreadable(OSError):
    """`strerror` says what is there instead of a regular file."""

    def __init__(self, why: str, path: Name) -> None:
        super().__init__(errno.EINVAL, why, str(path))

    def __str__(self) -> str:
        return str(self.strerror)


def check_regular(path: Name) -> None:
    """Raises Unreadable for anything but a regular file (or a link to one), FileNotFoundError for nothing at
    all."""
    _check(os.stat(path), path)


def check_folder(folder: Name) -> None:
    """The same for all that lies in a folder, folders in it aside: libraries below us open its files by
    themselves."""
    for entry in os.scandir(folder):
        if entry.is_symlink() and not os.path.exists(entry.path) or entry.is_dir():
            continue
        _check(os.stat(entry.path), entry.path)


def open_regular(path: Name) -> BufferedReader:
    """The file, open for reading. What is not a regular file is not waited for: it is found out before and
    after opening.
    """
    check_regular(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(os.fstat(fd), path)
    except Unreadable:
        os.close(fd)
        raise
    return open(fd, "rb")


def read_bytes(path: Name) -> bytes:
    with open_regular(path) as f:
        return f.read()


def read_text(path: Name) -> str:
    """UTF-8 text, line ends as Python's text files have them."""
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as e:
        raise Unreadable(f"it is not UTF-8 text ({e.reason} at byte {e.start})", path) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _check(info: os.stat_result, path: Name) -> None:
    if not stat.S_ISREG(info.st_mode):
        kind = _KINDS.get(stat.S_IFMT(info.st_mode), "something else")
        raise Unreadable(f"it is {kind}, not a regular file", Path(path))
