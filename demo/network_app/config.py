"""Where the app finds its servers: variables that `python -m demo up` sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import SettingsError


@dataclass(frozen=True)
class Config:
    """Addresses and files of the app. The database is that of DATABASE_URL.

    Attributes
    ----------
    port
        Port on 127.0.0.1.
    serving_url, console_url
        Base URLs without a trailing slash; `console_url` is empty without a console.
    folder
        Folder for the key that signs sessions.
    refresh_minutes
        How often the scheduler refreshes lists; 0 if none runs.
    max_registrations
        Of an address in an hour.
    """

    port: int = 8001
    serving_url: str = "http://127.0.0.1:8000"
    console_url: str = ""
    folder: Path = Path(".demo")
    refresh_minutes: int = 0
    max_registrations: int = 20

    @classmethod
    def from_environment(cls) -> Config:
        """Read the variables that `to_environment` returns; those missing or empty have their defaults.

        Raises
        ------
        SettingsError
            A value is not a whole number, and must be.
        """
        given: dict[str, Any] = {}
        for name, parse in FIELDS.items():
            variable = f"{PREFIX}{name.upper()}"
            text = os.environ.get(variable)
            try:
                given |= {name: parse(text)} if text else {}
            except ValueError:
                raise SettingsError(f"{variable}={text!r}: must be a whole number") from None
        return cls(**given)

    def to_environment(self) -> Mapping[str, str]:
        """Return a variable for each attribute, such as NETWORK_APP_PORT."""
        return {f"{PREFIX}{name.upper()}": str(getattr(self, name)) for name in FIELDS}


PREFIX = "NETWORK_APP_"
FIELDS = {
    "port": int,
    "serving_url": str,
    "console_url": str,
    "folder": Path,
    "refresh_minutes": int,
    "max_registrations": int,
}
