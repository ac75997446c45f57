"""What the apps of the console and of the demo's network share: templates, and addresses of files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from flask import Flask, Response, send_from_directory
from jinja2 import BaseLoader, StrictUndefined

from batch.reports.files import FILTERS, show_controls

STATIC = Path(__file__).parent / "static"
REPORTS = Path(str(files("batch.reports") / "templates"))
STYLE = "style.css"


class _Flask(Flask):
    jinja_options = {  # noqa: RUF012 - Flask declares it so
        "undefined": StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
        "autoescape": True,
    }


def make_app(package: str, loader: BaseLoader, style_path: str, folders: Mapping[str, Path]) -> Flask:
    """Return an app without pages.

    Parameters
    ----------
    loader
        Of its templates.
    style_path
        Path under which it sends the style sheet of the reports, as the endpoint `style`.
    folders
        Endpoint -> the folder whose files it sends. Their addresses have the file's hash, so that browsers
        keep a file until it changes.
    """
    app = _Flask(package)
    app.jinja_env.finalize = show_controls
    app.jinja_env.filters |= FILTERS
    app.jinja_loader = loader
    app.config["SEND_FILE_MAX_AGE_DEFAULT"] = timedelta(days=365)
    app.add_url_rule(style_path, "style", _send_style)

    def add_hash(endpoint: str, values: dict[str, Any]) -> None:
        if endpoint == "style":
            values["v"] = _hash_of(REPORTS / STYLE)
        elif endpoint in folders:
            values["v"] = _hash_of(folders[endpoint] / values["filename"])

    app.url_defaults(add_hash)
    return app


def _send_style() -> Response:
    """Send the style sheet of the reports."""
    return send_from_directory(REPORTS, STYLE)


@lru_cache
def _hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
