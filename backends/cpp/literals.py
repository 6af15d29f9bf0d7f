"""How text of a program enters C++ source: as a string literal, a comment, or a kernel function's name.

In: any text, perhaps from an artifact that is not trusted. Out: C++ text that cannot be anything but that
literal, comment or name. No other name of a program reaches the source: buffers, plans and symbols are
numbered, and the names in a tile program consist of letters, digits and `_` and get a prefix (`tile.verify`,
rule 1).
"""

from __future__ import annotations

import hashlib
import re

#: characters that literals and comments contain unchanged: no quotes, no backslash, no `?` (trigraphs), one
#: line
_PLAIN = frozenset(
    " !#$%&()*+,-./0123456789:;<=>@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_abcdefghijklmnopqrstuvwxyz{|}~"
)
_WORD = re.compile(r"[A-Za-z0-9_]{1,200}\Z", re.ASCII)
#: most characters of a comment
COMMENT = 300


def c_string(text: str) -> str:
    """The text as a string literal of its UTF-8 bytes; bytes that literals cannot contain unchanged are octal
    escapes of 3 digits."""
    data = text.encode("utf-8", "backslashreplace")
    return '"' + "".join(chr(b) if chr(b) in _PLAIN else f"\\{b:03o}" for b in data) + '"'


def c_comment(text: str) -> str:
    """The text as the rest of a line after `//`: characters that comments cannot contain unchanged, such as
    line ends and backslashes, become `_`."""
    return "".join(c if c in _PLAIN else "_" for c in text[:COMMENT]).rstrip()


def c_function(kernel: str) -> str:
    """`k_NAME`; in a name that is not a C++ identifier, other characters are replaced and a digest of the
    whole name is appended.
    """
    if _WORD.match(kernel):
        return f"k_{kernel}"
    word = re.sub(r"[^A-Za-z0-9_]", "_", kernel[:80])
    return f"k_{word}_{hashlib.sha256(kernel.encode('utf-8', 'backslashreplace')).hexdigest()[:12]}"
