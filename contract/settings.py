"""Settings: read once from the environment, checked, frozen, passed in."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

from contract.errors import SettingsError

T = TypeVar("T")
Parse = Callable[[str], Any]

SHOWN_SECRET = "***"

ON, OFF = "on", "off"
EMBEDDINGS_AUTO, EMBEDDINGS_ON, EMBEDDINGS_OFF = "auto", "on", "off"

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
"""A bearer token (RFC 6750), too long to guess."""

SECRET_OPTIONS = ("password", "sslpassword", "ssl_password")
"""Where a URL may carry a password beside its usual place."""


def _integer(low: int, high: int) -> Parse:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"must be from {low} to {high}")
        return value

    return parse


def _number(low: float, high: float) -> Parse:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError(f"must be from {low} to {high}")
        return value

    return parse


def _url(*schemes: str) -> Parse:
    def parse(text: str) -> str:
        try:
            scheme = urlsplit(text).scheme
            _ = urlsplit(text).port
        except ValueError:
            raise ValueError("is not a URL; its parts must be percent-encoded") from None
        if scheme.partition("+")[0] not in schemes:
            raise ValueError("must be a URL that starts with " + " or ".join(f"{s}://" for s in schemes))
        return text

    return parse


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _word(text: str) -> str:
    if not text or any(c.isspace() or c in "{}*?[]\\" for c in text):
        raise ValueError("must be a word without spaces or any of {}*?[]\\")
    return text


def _cron(text: str) -> str:
    if len(text.split()) != 5:
        raise ValueError("must be a cron expression of five fields, like '0 3 * * *'")
    return text


def _timezone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (KeyError, ValueError, OSError):
        raise ValueError("must be a time zone's name, like UTC or Europe/Moscow") from None
    return text


def _when(text: str) -> str:
    choices = (EMBEDDINGS_AUTO, EMBEDDINGS_ON, EMBEDDINGS_OFF)
    if text.lower() not in choices:
        raise ValueError("must be one of " + ", ".join(choices))
    return text.lower()


def _switch(text: str) -> str:
    if text.lower() not in (ON, OFF):
        raise ValueError(f"must be {ON} or {OFF}")
    return text.lower()


def _tokens(text: str) -> str:
    tokens = [token.strip() for token in text.split(",")]
    if not all(_TOKEN.fullmatch(token) for token in tokens):
        raise ValueError(
            "must be tokens of at least 16 letters, digits and any of -._~+/ with commas between them"
        )
    return ",".join(tokens)


def _log_level(text: str) -> str:
    levels = ("DEBUG", "INFO", "WARNING", "ERROR")
    if text.upper() not in levels:
        raise ValueError("must be one of " + ", ".join(levels))
    return text.upper()


def setting(env: str, default: T, parse: Parse, meaning: str, *, secret: bool = False) -> T:
    """Declare one setting: its environment variable, default, check and meaning."""
    metadata = {"env": env, "parse": parse, "meaning": meaning, "secret": secret}
    result: T = field(default=default, repr=not secret, metadata=metadata)
    return result


@dataclass(frozen=True)
class Settings:
    """All settings of all processes. `Settings.from_environment()` is the way in."""

    database_url: str = setting(
        "DATABASE_URL",
        "postgresql://postgres@localhost:5432/postgres",
        _url("postgresql", "postgres"),
        "the Postgres that holds the three views",
        secret=True,
    )
    redis_url: str = setting(
        "REDIS_URL",
        "redis://localhost:6379/0",
        _url("redis", "rediss", "unix"),
        "the Redis or Valkey that lists are written to and served from",
        secret=True,
    )
    key_prefix: str = setting("OVERNIGHT_KEY_PREFIX", "recs", _word, "first part of every Redis key")
    top_n: int = setting("OVERNIGHT_TOP_N", 100, _integer(1, 10_000), "posts in a user's list")
    similar_n: int = setting(
        "OVERNIGHT_SIMILAR_N", 20, _integer(0, 1_000), "posts in a post's list of similar ones; 0 makes none"
    )
    memory_budget_mib: int = setting(
        "OVERNIGHT_MEMORY_BUDGET_MIB",
        512,
        _integer(16, 1_048_576),
        "memory for scoring; sets how many users are scored at a time",
    )
    threads: int = setting(
        "OVERNIGHT_THREADS", 0, _integer(0, 1024), "threads of the batch; 0 uses every core"
    )
    seed: int = setting("OVERNIGHT_SEED", 42, _integer(0, 2**31 - 1), "same data, same seed, same lists")
    history_fraction: float = setting(
        "OVERNIGHT_HISTORY_FRACTION",
        0.3,
        _number(0.01, 0.9),
        "earliest part of the labelled views: features only, no labels",
    )
    holdout_fraction: float = setting(
        "OVERNIGHT_HOLDOUT_FRACTION",
        0.2,
        _number(0.01, 0.9),
        "latest part of the labelled views: held out to evaluate",
    )
    training_rows: int = setting(
        "OVERNIGHT_TRAINING_ROWS",
        2_000_000,
        _integer(100, 100_000_000),
        "most examples to train on; more are thinned by whole users",
    )
    embeddings: str = setting(
        "OVERNIGHT_EMBEDDINGS",
        EMBEDDINGS_AUTO,
        _when,
        "embed texts: on, off, or auto: where its packages are installed",
    )
    model_dir: str = setting("OVERNIGHT_MODEL_DIR", "models", _text, "folder in which a run keeps its model")
    keep_runs: int = setting(
        "OVERNIGHT_KEEP_RUNS", 3, _integer(1, 100), "runs kept per variant, the live one among them"
    )
    experiment_salt: str = setting(
        "OVERNIGHT_EXPERIMENT_SALT",
        "overnight",
        _text,
        "salt of the split that the first run stores",
    )
    percent_test: int = setting(
        "OVERNIGHT_PERCENT_TEST",
        50,
        _integer(0, 100),
        "percent of users in test that the first run stores",
    )
    nightly_cron: str = setting(
        "OVERNIGHT_NIGHTLY_CRON", "0 3 * * *", _cron, "when the scheduler runs the night"
    )
    timezone: str = setting("OVERNIGHT_TIMEZONE", "UTC", _timezone, "time zone of the cron expression")
    host: str = setting("OVERNIGHT_HOST", "127.0.0.1", _word, "address that serving listens on")
    port: int = setting("OVERNIGHT_PORT", 8000, _integer(1, 65535), "port that serving listens on")
    workers: int = setting("OVERNIGHT_WORKERS", 2, _integer(1, 256), "gunicorn worker processes")
    redis_timeout_ms: int = setting(
        "OVERNIGHT_REDIS_TIMEOUT_MS",
        50,
        _integer(1, 10_000),
        "how long a request waits for Redis before it falls back",
    )
    state_refresh_seconds: float = setting(
        "OVERNIGHT_STATE_REFRESH_SECONDS",
        1.0,
        _number(0.05, 3600),
        "how often serving re-reads live pointers, popular lists, experiment and blocked posts",
    )
    stale_after_hours: float = setting(
        "OVERNIGHT_STALE_AFTER_HOURS",
        26.0,
        _number(0.01, 8760),
        "age of a live run from which /readyz warns",
    )
    texts_in_memory: int = setting(
        "OVERNIGHT_TEXTS_IN_MEMORY",
        200_000,
        _integer(1, 100_000_000),
        "posts whose texts a worker holds in memory; of more, those used last",
    )
    metrics_port: int = setting(
        "OVERNIGHT_METRICS_PORT",
        0,
        _integer(0, 65535),
        "port of their own for the metrics; 0 serves them beside the rest",
    )
    api_tokens: str = setting(
        "OVERNIGHT_API_TOKENS",
        "",
        _tokens,
        "bearer tokens, one of which a request must bring; commas between them; empty asks for none",
        secret=True,
    )
    access_log: str = setting(
        "OVERNIGHT_ACCESS_LOG", OFF, _switch, "on writes a line to the log for every request"
    )
    log_level: str = setting("OVERNIGHT_LOG_LEVEL", "INFO", _log_level, "DEBUG, INFO, WARNING or ERROR")

    def __post_init__(self) -> None:
        if self.history_fraction + self.holdout_fraction >= 0.95:
            raise SettingsError(
                "OVERNIGHT_HISTORY_FRACTION and OVERNIGHT_HOLDOUT_FRACTION together must stay under 0.95, "
                "so that something is left to train on"
            )
        if self.metrics_port == self.port:
            raise SettingsError(
                "OVERNIGHT_METRICS_PORT must be another than OVERNIGHT_PORT, or 0 to serve both on one"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read every setting, each falling back to its default when unset or empty.

        Raises
        ------
        SettingsError
            Names the variable and what it must be; never shows a secret.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        for declared in fields(cls):
            text = environment.get(declared.metadata["env"], "")
            if text:
                values[declared.name] = _parse(declared, text)
        return cls(**values)

    @classmethod
    def declared(cls) -> list[dict[str, Any]]:
        """Return each setting's `env`, `default` and `meaning`, in order, for the docs."""
        return [
            {"env": f.metadata["env"], "default": str(f.default), "meaning": f.metadata["meaning"]}
            for f in fields(cls)
        ]

    def secrets(self) -> list[str]:
        """Return the passwords inside the URLs, and the tokens: what no log may show."""
        urls = [urlsplit(url) for url in (self.database_url, self.redis_url)]
        found = [url.password for url in urls if url.password]
        for url in urls:
            options = parse_qs(url.query)
            found += [value for name in SECRET_OPTIONS for value in options.get(name, [])]
        return found + [token for token in self.api_tokens.split(",") if token]


def _parse(declared: Field[Any], text: str) -> Any:
    env = declared.metadata["env"]
    try:
        return declared.metadata["parse"](text)
    except ValueError as error:
        shown = SHOWN_SECRET if declared.metadata["secret"] else repr(text)
        reason = str(error)
        if "invalid literal" in reason or "could not convert" in reason:
            reason = "must be a number"
        raise SettingsError(f"{env}={shown}: {reason}") from None
