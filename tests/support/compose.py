"""What the tests of docker-compose.yml share: the files, read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
DASK_FILE = ROOT / "docker-compose.dask.yml"
DOCKERFILE = (ROOT / "Dockerfile").read_text()

COMPOSE: dict[str, Any] = YAML(typ="safe").load(COMPOSE_FILE)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DASK: dict[str, Any] = YAML(typ="safe").load(DASK_FILE)
"""Merged into COMPOSE by those who have a Dask cluster."""
OF_OURS = {name: service for name, service in SERVICES.items() if "build" in service}

PACKAGES = {
    "batch": ("batch",),
    "scheduler": ("scheduler", "batch"),
    "serving": ("serving",),
    "console": ("console", "scheduler", "batch"),
}
"""Service -> the packages whose code runs in it, beside contract."""
