"""How text of a program enters C++ source: as a string literal, a comment, or a kernel function's name.

In: any text, perhaps from an artifact that is not trusted. Out: C++ that can mean nothing else. Nothing
else that a program calls by name reaches the source: buffers, plans and symbols stand there by number, and
the words of a tile program are letters, digits and `_` behind a prefix of ours (`tile.verify`, invariant 1).
"""

from __future__ import annotations

import hashlib
import re

#: all that a literal and a comment may hold as it is: no quotes, no backslash, no `?` (trigraphs), one line
_PLAIN = frozenset(
    " !#$%&()*+,-./0123456789:;<=>@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_abcdefghijklmnopqrstuvwxyz{|}~"
)
_WORD = re.compile(r"[A-Za-z0-9_]{1,200}\Z", re.ASCII)
#: most characters of a comment
COMMENT = 300


def c_string(text: str) -> str:
    """The text as a string literal of its UTF-8 bytes; what is not plain is an octal escape, which always
    ends after 3 digits."""
    data = text.encode("utf-8", "backslashreplace")
    return '"' + "".join(chr(b) if chr(b) in _PLAIN else f"\\{b:03o}" for b in data) + '"'


def c_comment(text: str) -> str:
    """The text as the rest of a line after `//`: plain characters only, never a line's end or a
    continuation."""
    return "".join(c if c in _PLAIN else "_" for c in text[:COMMENT]).rstrip()


def c_function(kernel: str) -> str:
    """`k_NAME`; a name that is not a word of C++ gets its other characters replaced and a digest of all
    behind them.
    """
    if _WORD.match(kernel):
        return f"k_{kernel}"
    word = re.sub(r"[^A-Za-z0-9_]", "_", kernel[:80])
    return f"k_{word}_{hashlib.sha256(kernel.encode('utf-8', 'backslashreplace')).hexdigest()[:12]}"
