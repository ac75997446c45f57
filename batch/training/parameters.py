"""Which parameters of the forest may be tuned, and the file by which tuning hands them to the night."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch.files import write_atomically
from contract.errors import EXIT_USAGE, ModelError, OvernightError
from contract.settings import Settings


class ParametersError(OvernightError):
    """Raised when a file of tuned parameters cannot be used as it is."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Range:
    """Values from `low` to `high`, both included.

    Attributes
    ----------
    whole
        Whole numbers only.
    log
        Tried evenly on a log scale.
    """

    low: float
    high: float
    whole: bool = False
    log: bool = False

    def wrong_in(self, value: Any) -> str | None:
        """Say what a value must be, or None where it is that."""
        kind = int if self.whole else int | float
        if isinstance(value, kind) and not isinstance(value, bool) and self.low <= value <= self.high:
            return None
        return f"must be a {'whole ' if self.whole else ''}number from {self.low:g} to {self.high:g}"


TUNABLE: dict[str, Range] = {
    "learning_rate": Range(0.005, 0.2, log=True),
    "num_iterations": Range(50, 600, whole=True),
    "num_leaves": Range(7, 63, whole=True),
    "max_depth": Range(-1, 12, whole=True),
    "min_data_in_leaf": Range(5, 1000, whole=True, log=True),
    "feature_fraction": Range(0.2, 1.0),
    "bagging_fraction": Range(0.4, 1.0),
    "lambda_l2": Range(0.01, 200.0, log=True),
    "cat_smooth": Range(1.0, 300.0, log=True),
}
"""LightGBM's names. All others stay as they are: they make runs repeatable, or the scorer relies on them."""


def parameters_file(variant: str, settings: Settings) -> Path:
    """Return where the tuned parameters of a variant are kept."""
    return Path(settings.night.model_dir) / f"parameters-{variant}.json"


def parameters_for(variant: str, settings: Settings) -> dict[str, Any]:
    """Return the tuned parameters of a variant, to be laid over the defaults; empty where none are kept.

    Raises
    ------
    ParametersError
        The file cannot be read, is of another variant, or has a name or value that may not be.
    """
    path = parameters_file(variant, settings)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror})") from None
    except ValueError:
        raise _refused(path, "is not JSON") from None
    if not isinstance(kept, dict) or not isinstance(kept.get("parameters"), dict):
        raise _refused(path, "has no object 'parameters'")
    if kept.get("variant") != variant:
        raise _refused(path, f"is of variant {kept.get('variant')!r}, not {variant!r}")
    tuned: dict[str, Any] = kept["parameters"]
    for name, value in tuned.items():
        if name not in TUNABLE:
            raise _refused(path, f"names {name!r}, which is none of {', '.join(TUNABLE)}")
        wrong = TUNABLE[name].wrong_in(value)
        if wrong:
            raise _refused(path, f"{name}={value!r} {wrong}")
    return tuned


def keep_parameters(
    variant: str, settings: Settings, tuned: Mapping[str, Any], measured: Mapping[str, Any]
) -> Path:
    """Write tuned parameters with what they were measured on, whole or not at all; return where.

    Raises
    ------
    ModelError
        The disk is full or the folder cannot be written.
    """
    path = parameters_file(variant, settings)
    kept = {"variant": variant, "parameters": dict(tuned), "measured": dict(measured)}
    try:
        write_atomically(path, (json.dumps(kept, indent=2) + "\n").encode())
    except OSError as error:
        reason = f"{error.strerror}; free space or set OVERNIGHT_MODEL_DIR"
        raise ModelError(f"cannot keep tuned parameters in {path}: {reason}") from None
    return path


def _refused(path: Path, reason: str) -> ParametersError:
    return ParametersError(f"{path}: {reason}; mend it, or delete it to go back to the defaults")
