"""The API in OpenAPI 3.1: `openapi.json` beside this file, with the longest list of the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).with_name("openapi.json")


def load_document(top_n: int) -> dict[str, Any]:
    """Return the document; `limit` goes up to `top_n` and is 5 or, if less, `top_n` when not given."""
    document: dict[str, Any] = json.loads(DOCUMENT.read_text())
    limit = document["components"]["parameters"]["limit"]["schema"]
    limit["maximum"] = top_n
    limit["default"] = min(limit["default"], top_n)
    return document
