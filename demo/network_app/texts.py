"""What people type into forms: cleaned, and within its limits."""

from __future__ import annotations

from contract.text import CONTROLS


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
        Nothing is left, or more than the characters allowed.
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
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")
    return CONTROLS.sub("", lines)


def _check_length(text: str, max_characters: int, field: str) -> None:
    if not text:
        raise InputError(f"The {field} is empty: write something.")
    if len(text) > max_characters:
        raise InputError(
            f"The {field} has {len(text):,} characters, and may have {max_characters:,}: shorten it."
        )
