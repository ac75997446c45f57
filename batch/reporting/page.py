"""Where the page of a run is; apart from what lays it out, so that finding it loads nothing that learns."""

from __future__ import annotations

from pathlib import Path

from contract.settings import Settings

REPORT = "report.html"


def report_path(settings: Settings, run_id: str) -> Path:
    """Say where a run's report is, beside its model."""
    return Path(settings.model_dir).absolute() / run_id / REPORT


def write_report(path: Path, page: str) -> int:
    """Write the page, whole or not at all; return its size in bytes.

    Raises
    ------
    OSError
        The disk is full or the folder cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    size = unfinished.write_bytes(page.encode())
    unfinished.replace(path)
    return size
