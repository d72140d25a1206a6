"""Text from studies and runs made safe to print: no control character reaches a terminal, a page or a drawing."""

from __future__ import annotations

import re
from typing import Any

from heldout.errors import checked

# Terminal sequences as a whole: CSI, strings such as OSC up to their end, shorter escapes, and CSI as one C1 code.
_SEQUENCES = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]|\x1b[\\]PX^_][^\x07\x1b\x9c\n]*(?:\x07|\x1b\\\\|\x9c)"
    "|\x1b[ -/]*[0-~]|\x9b[0-?]*[ -/]*[@-~]"
)
# What is left of C0, DEL and C1 but for tabs and line ends; marks that change the direction of text; other separators.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb]")
_SURROGATES = re.compile("[\ud800-\udfff]")


@checked
def plain_text(text: str) -> str:
    r"""The text without control characters, terminal sequences and marks of direction; tabs and line ends stay.

    A half of a surrogate pair becomes ``?``, so that the text can be encoded.

    Example:
        >>> plain_text("\x1b[31mred\x1b[0m and a \x07bell")
        'red and a bell'
    """
    if text.isascii() and text.isprintable():
        return text
    text = _CONTROLS.sub("", _SEQUENCES.sub("", text.replace("\r\n", "\n")))
    return _SURROGATES.sub("?", text)


@checked
def plain_name(text: str) -> str:
    r"""The text as ``plain_text`` makes it, in one line.

    Example:
        >>> plain_name("two\nlines")
        'two lines'
    """
    return plain_text(text).replace("\n", " ").replace("\t", " ")


def plain(value: Any) -> Any:
    """A JSON value with all of its texts and names made plain.

    Example:
        >>> plain({"name": ["a \\x07bell", 3]})
        {'name': ['a bell', 3]}
    """
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, dict):
        return {plain_text(name) if isinstance(name, str) else name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value
