"""Text that people send in forms: names, posts, messages."""

from __future__ import annotations

import unicodedata

from flask import request

from contract.text import CONTROLS

_SEPARATORS = "\u2028\u2029"
"""Line and paragraph separators of Unicode, which are no control characters."""


def read_line(field: str) -> str:
    """Return a field of the form as one line: without control characters, each run of blanks as one blank."""
    return _remove_controls(" ".join(request.form.get(field, "").split()))


def read_lines(field: str) -> str:
    r"""Return a field of the form as lines that end with `\n`, without control characters."""
    text = request.form.get(field, "").replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")
    return _remove_controls(text.translate(dict.fromkeys(map(ord, _SEPARATORS), "\n"))).strip()


def is_visible(text: str) -> bool:
    """Return whether a text has a letter, digit, sign or symbol: not only characters that nobody sees."""
    return any(unicodedata.category(character)[0] in "LNPS" for character in text)


def _remove_controls(text: str) -> str:
    return CONTROLS.sub("", text)
