"""What people type into forms: cleaned, and within its limits."""

from __future__ import annotations

import unicodedata

from contract.text import CONTROLS

_LINE_ENDS = str.maketrans({"\r": "\n", "\u2028": "\n", "\u2029": "\n", "\t": " "})


class InputError(ValueError):
    """Raised when a field cannot be taken; the message says what to change."""


def clean_text(text: str, max_characters: int, field: str) -> str:
    """Return a text of several lines without control characters and blanks around it.

    Parameters
    ----------
    field
        What the text is, as the message calls it, such as `post`.

    Raises
    ------
    InputError
        Nothing that can be seen is left, or more than the characters allowed.
    """
    cleaned = _remove_controls(text).strip()
    _check_length(cleaned, max_characters, field)
    return cleaned


def clean_line(text: str, max_characters: int, field: str) -> str:
    """Return a text of one line, such as a name, with one blank between words; errors as `clean_text`."""
    cleaned = " ".join(_remove_controls(text).split())
    _check_length(cleaned, max_characters, field)
    return cleaned


def _remove_controls(text: str) -> str:
    return CONTROLS.sub("", text.replace("\r\n", "\n").translate(_LINE_ENDS))


def _check_length(text: str, max_characters: int, field: str) -> None:
    if not any(unicodedata.category(character)[0] in "LNPS" for character in text):
        raise InputError(f"The {field} is empty: write something.")
    if len(text) > max_characters:
        raise InputError(
            f"The {field} has {len(text):,} characters, and may have {max_characters:,}: shorten it."
        )
