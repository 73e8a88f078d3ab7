"""Texts of other people's archives, on their way to a terminal, a page or a spreadsheet.

A name or a message may hold anything: terminal escape sequences, HTML, formulas. Here they become what they are,
text. JSON needs none of this: it escapes them itself.
"""

from __future__ import annotations

import re

# C0 and C1 controls but for the line's end and the tab, and what turns the direction of writing or hides.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
# Folder -> what its user types for it: a copy of an object store is nobody's place to go on from.
CALLED: dict[str, str] = {}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def as_typed(text: str) -> str:
    """The text with folders of copies as their user types them (`s3://bucket/...`)."""
    for folder, name in CALLED.items():
        text = text.replace(folder, name)
    return text


def printable(text: str, lines: bool = True) -> str:
    r"""The text with every control character written out (`\x1b`), so that a terminal shows it and obeys nothing.

    `lines`: ends of lines and tabs stay.
    """
    text = _CONTROLS.sub(_written_out, as_typed(text))
    return text if lines else text.replace("\n", "\\n").replace("\t", "\\t")


def markdown(text: str) -> str:
    """The text as words in a Markdown page: no HTML, no link, no image, no further cell of a table.

    Emphasis and brackets that do no harm stay as they are: most words of a page are evometa's own.
    """
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", printable(text, lines=False))
    return re.sub(r"(?<=\])([(\[:])", r"\\\1", text.replace("|", "\\|"))


def docstring(text: str) -> str:
    """The text as it may stand between the triple quotes of a Python file: it ends neither them nor the line."""
    return printable(text, lines=False).replace("\\", "\\\\").replace('"""', "'''")


def spreadsheet(text: str) -> str:
    """The text for a cell of a CSV file: what a spreadsheet would take for a formula gets an apostrophe in front."""
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
