"""Other people's text, made safe to print: control characters are shown, not sent to a terminal."""

from __future__ import annotations

import json
import re

CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 except the line break, DEL, C1, the characters that reorder text, and halves of surrogate pairs."""


SERVER_RUNS = re.compile(r"Is the server running [^?]*connections[^?]*\?")


def escape_controls(text: str) -> str:
    r"""Replace each control character by its escape, such as `\x1b`; line breaks stay."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape_line(text: str) -> str:
    r"""Replace each control character by its escape, and each line break by `\n`."""
    return escape_controls(text).replace("\n", r"\n")


def as_clause(text: str) -> str:
    """Join the lines of a driver's message, to be followed by a semicolon: without the dot at its end.

    libpq's question whether the server runs goes too; the advice after the semicolon says so.
    """
    return SERVER_RUNS.sub("", " ".join(text.split())).rstrip(". ")


def escape_json(document: str) -> str:
    r"""Replace each control character of a JSON document by JSON's escape, such as `\u009b`.

    The document keeps its meaning. JSON's own escapes have replaced line breaks within its strings.
    """
    return CONTROLS.sub(lambda found: json.dumps(found[0])[1:-1], document)
