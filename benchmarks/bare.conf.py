# ruff: noqa: N999 - named like the file it stands for
"""The settings of serving/gunicorn.conf.py for an app that has no state to load."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

globals().update(runpy.run_path(str(Path(__file__).parents[1] / "serving" / "gunicorn.conf.py")))


def worker_exit(_server: Any, _worker: Any) -> None:
    """Send nothing."""


def post_worker_init(_worker: Any) -> None:
    """Load nothing."""
