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
AUTO_RECIPE = "auto"
RECIPE_NAMES = ("liked-if-viewed", "liked", "ranked")
"""What a model can learn, see batch/training/recipe.py."""

EMBEDDINGS_AUTO, EMBEDDINGS_ON, EMBEDDINGS_OFF = "auto", "on", "off"

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
"""A bearer token (RFC 6750), too long to guess."""

SECRET_OPTIONS = ("password", "sslpassword", "ssl_password")
"""Where a URL may carry a password beside its usual place."""

LEAST_SECRET = 8
"""Characters of a webhook's path from which on it may be one."""


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
            parts = urlsplit(text)
            scheme, _ = parts.scheme, parts.port
            if parts.netloc.count("@") > 1:  # the rest of a password would pass for the host
                raise ValueError
        except ValueError:
            raise ValueError("is not a URL; its parts must be percent-encoded") from None
        if scheme.partition("+")[0] not in schemes:
            raise ValueError("must be a URL that starts with " + " or ".join(f"{s}://" for s in schemes))
        return text

    return parse


def _webhook(text: str) -> str:
    _url("http", "https")(text)
    parts = urlsplit(text)
    if not parts.hostname or "@" in parts.netloc:
        raise ValueError("must be like https://host/path, without a user or password")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("is not a URL; its parts must be percent-encoded")
    return text


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


def _one_of(*choices: str) -> Parse:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError("must be one of " + ", ".join(choices))
        return text.lower()

    return parse


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
    redis_cluster: str = setting(
        "OVERNIGHT_REDIS_CLUSTER",
        OFF,
        _one_of(ON, OFF),
        "on: REDIS_URL names one node of a Redis Cluster",
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
    recipe: str = setting(
        "OVERNIGHT_RECIPE",
        AUTO_RECIPE,
        _one_of(AUTO_RECIPE, *RECIPE_NAMES),
        "what the models learn; auto: liked-if-viewed or liked, by data before the holdout",
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
        _one_of(EMBEDDINGS_AUTO, EMBEDDINGS_ON, EMBEDDINGS_OFF),
        "embed texts: on, off, or auto: where its packages are installed",
    )
    model_dir: str = setting("OVERNIGHT_MODEL_DIR", "models", _text, "folder in which a run keeps its model")
    store_dir: str = setting(
        "OVERNIGHT_STORE_DIR",
        "",
        _text,
        "folder in which a run keeps its copy of the interactions; empty: OVERNIGHT_MODEL_DIR",
    )
    store_memory_mib: int = setting(
        "OVERNIGHT_STORE_MEMORY_MIB",
        256,
        _integer(64, 1_048_576),
        "memory for copying and counting interactions; what needs more goes to OVERNIGHT_STORE_DIR",
    )
    keep_runs: int = setting(
        "OVERNIGHT_KEEP_RUNS", 3, _integer(1, 100), "runs kept per variant, the live one among them"
    )
    prune_after_minutes: int = setting(
        "OVERNIGHT_PRUNE_AFTER_MINUTES",
        60,
        _integer(0, 525_600),
        "how long a run that is live no more keeps its keys, however many are kept",
    )
    gate_below_popularity: float = setting(
        "OVERNIGHT_GATE_BELOW_POPULARITY",
        0.0,
        _number(0, 1),
        "largest shortfall of NDCG@10 over the full catalogue below popularity's; 1 refuses nothing",
    )
    gate_below_recency_popularity: float = setting(
        "OVERNIGHT_GATE_BELOW_RECENCY_POPULARITY",
        0.0,
        _number(0, 1),
        "largest shortfall of NDCG@10 over the full catalogue below recency popularity's; 1 refuses nothing",
    )
    gate_ndcg_drop: float = setting(
        "OVERNIGHT_GATE_NDCG_DROP",
        0.005,
        _number(0, 1),
        "largest drop in NDCG@10 over the full catalogue below the live run; refused if the whole "
        "95 % interval is worse",
    )
    gate_auc_drop: float = setting(
        "OVERNIGHT_GATE_AUC_DROP",
        0.01,
        _number(0, 1),
        "how much ROC AUC may surely fall short of the live run's",
    )
    gate_hitrate_drop: float = setting(
        "OVERNIGHT_GATE_HITRATE_DROP",
        0.02,
        _number(0, 1),
        "how much HitRate@5 may surely fall short of the live run's",
    )
    gate_users_covered: float = setting(
        "OVERNIGHT_GATE_USERS_COVERED", 1.0, _number(0, 1), "least share of the users asked for with a list"
    )
    gate_users_kept: float = setting(
        "OVERNIGHT_GATE_USERS_KEPT",
        0.7,
        _number(0, 1),
        "fewest users of the network, as a share of how many it had for the live run",
    )
    gate_full_lists: float = setting(
        "OVERNIGHT_GATE_FULL_LISTS",
        1.0,
        _number(0, 1),
        "least share of lists as long as they can be: N posts, or all not liked and not blocked",
    )
    gate_lists_of_five: float = setting(
        "OVERNIGHT_GATE_LISTS_OF_FIVE",
        0.5,
        _number(0, 1),
        "least share of lists with five posts, or with all of a smaller catalogue",
    )
    gate_coverage: float = setting(
        "OVERNIGHT_GATE_COVERAGE",
        0.001,
        _number(0, 1),
        "least share of the posts in some list's first five",
    )
    gate_coverage_of_live: float = setting(
        "OVERNIGHT_GATE_COVERAGE_OF_LIVE",
        0.3,
        _number(0, 1),
        "fewest posts in the first fives, as a share of the live run's for the same users",
    )
    gate_overlap_low: float = setting(
        "OVERNIGHT_GATE_OVERLAP_LOW",
        0.02,
        _number(0, 1),
        "least mean overlap of users' first fives with the live run's",
    )
    gate_overlap_high: float = setting(
        "OVERNIGHT_GATE_OVERLAP_HIGH",
        1.0,
        _number(0, 1),
        "greatest mean overlap; below 1 refuses a run that changes nothing",
    )
    gate_not_finite: int = setting(
        "OVERNIGHT_GATE_NOT_FINITE", 0, _integer(0, 10**9), "most scores that may be infinite or no number"
    )
    gate_liked_served: int = setting(
        "OVERNIGHT_GATE_LIKED_SERVED", 0, _integer(0, 10**9), "most posts in lists that their user likes"
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
    exposures: str = setting(
        "OVERNIGHT_EXPOSURES",
        ON,
        _one_of(ON, OFF),
        "on notes which variant's list each first page of a feed came from, for the experiment",
    )
    exposures_batches: int = setting(
        "OVERNIGHT_EXPOSURES_BATCHES",
        20_000,
        _integer(100, 10_000_000),
        "batches of up to 500 exposures that wait in Redis at most; of more, the oldest are lost",
    )
    exposures_keep_days: int = setting(
        "OVERNIGHT_EXPOSURES_KEEP_DAYS", 90, _integer(1, 3_650), "days that exposures stay in Postgres"
    )
    nightly_cron: str = setting(
        "OVERNIGHT_NIGHTLY_CRON", "0 3 * * *", _cron, "when the scheduler runs the night"
    )
    timezone: str = setting("OVERNIGHT_TIMEZONE", "UTC", _timezone, "time zone of the cron expression")
    late_after_minutes: int = setting(
        "OVERNIGHT_LATE_AFTER_MINUTES",
        120,
        _integer(1, 10_080),
        "a night is late when no run is live so long after it was due",
    )
    webhook_url: str = setting(
        "OVERNIGHT_WEBHOOK_URL",
        "",
        _webhook,
        "where alerts are posted as JSON; empty posts none",
        secret=True,
    )
    refresh_minutes: int = setting(
        "OVERNIGHT_REFRESH_MINUTES",
        5,
        _integer(0, 1_440),
        "how often the scheduler refreshes the lists of users who acted; 0 never does",
    )
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
        "OVERNIGHT_ACCESS_LOG", OFF, _one_of(ON, OFF), "on writes a line to the log for every request"
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
        """Return what no log may show: passwords inside the URLs, tokens, and where alerts are posted to.

        Whoever knows the path of a webhook may post to it. A path too short to
        be a secret is left out, since it might be part of anything.
        """
        urls = [urlsplit(url) for url in (self.database_url, self.redis_url)]
        found = [url.password for url in urls if url.password]
        for url in urls:
            options = parse_qs(url.query)
            found += [value for name in SECRET_OPTIONS for value in options.get(name, [])]
        path = self.webhook_url.partition("://")[2].partition("/")[2]
        found += [secret for secret in (self.webhook_url, path) if len(secret) >= LEAST_SECRET]
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
