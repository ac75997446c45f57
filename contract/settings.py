"""Settings of all processes, read once from the environment and validated."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from datetime import datetime
from difflib import get_close_matches
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from contract.columns import (
    AUTHOR_ID,
    CREATED_AT,
    LIKE_COUNT,
    POST_ID,
    POSTS,
    SCHEMA,
    TEXT,
    TOPIC,
    USER_ID,
    USERS,
    VIEW_COUNT,
)
from contract.errors import SettingsError

T = TypeVar("T")
Parse = Callable[[str], Any]

SHOWN_SECRET = "***"

ON, OFF = "on", "off"
AUTO_RECIPE = "auto"
RECIPE_NAMES = ("liked-if-viewed", "liked", "ranked")
"""Names of the recipes of a model, see batch/training/parameters.py."""

EMBEDDINGS_AUTO, EMBEDDINGS_ON, EMBEDDINGS_OFF = "auto", "on", "off"

NAMED_COLUMNS = {
    USERS: (USER_ID,),
    POSTS: (POST_ID, TOPIC, TEXT, CREATED_AT, LIKE_COUNT, VIEW_COUNT, AUTHOR_ID),
}
"""View -> columns with a meaning of their own; all others are further columns."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
"""A bearer token (RFC 6750) that is too long to guess."""

LEAVE_OUT_LIKED, LEAVE_OUT_VIEWED = "liked", "viewed"

REQUEST_PARAMETERS = ("limit", "cursor", "user_id", "id", "time")
"""Names of parameters of the HTTP API, which no attribute of OVERNIGHT_POPULAR_BY may have."""

SECRET_OPTIONS = ("password", "sslpassword", "ssl_password")
"""URL options that may hold a password."""

MIN_SECRET_LENGTH = 8
"""A shorter secret may be part of other text: see `redact`. A shorter path of a webhook URL is no secret."""


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
            scheme = parts.scheme
            # Otherwise part of an unescaped password is read as the host, and shown.
            if parts.netloc.count("@") > 1 or "#" in text or ("@" in parts.path and parts.netloc):
                raise ValueError
            for host in parts.netloc.rpartition("@")[2].split(","):  # Postgres takes several
                _ = urlsplit(f"//{host}").port
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


CRON_FIELDS = (
    "minute (0 to 59)",
    "hour (0 to 23)",
    "day of the month (1 to 31)",
    "month (1 to 12)",
    "weekday (0 to 7)",
)


def _cron(text: str) -> str:
    start, texts = datetime(2000, 1, 1), text.split()
    if len(texts) != len(CRON_FIELDS):
        raise ValueError(f"must be a cron expression of five fields, like '0 3 * * *', not of {len(texts)}")
    for index, (each, name) in enumerate(zip(texts, CRON_FIELDS, strict=True)):
        alone = ["*"] * len(CRON_FIELDS)
        alone[index] = each
        try:
            CronSim(" ".join(alone), start)
        except CronSimError:
            raise ValueError(f"must be a cron expression: {each!r} is not a valid {name}") from None
    try:
        never_fires = next(CronSim(text, start), None) is None
    except CronSimError:
        never_fires = True
    if never_fires:
        raise ValueError("must be a cron expression that fires: none of its months has such a day")
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


def _further_columns(text: str) -> str:
    names = [name.strip().removeprefix(f"{SCHEMA}.") for name in text.rstrip(", ").split(",")]
    for name in names:
        view, _, column = name.partition(".")
        if view not in NAMED_COLUMNS or not column:
            raise ValueError(f"must be {USERS}.COLUMN or {POSTS}.COLUMN, with commas between them")
        if column in NAMED_COLUMNS[view]:
            raise ValueError(f"must name further columns only, and {name} is not one")
    return ",".join(names)


def _zero_or(low: int, high: int) -> Parse:
    def parse(text: str) -> int:
        value = int(text)
        if value != 0 and not low <= value <= high:
            raise ValueError(f"must be 0 or from {low} to {high}")
        return value

    return parse


def _attribute(text: str) -> str:
    """Parse a column of recs.users that is also the name of a parameter in requests."""
    name = text.strip().removeprefix(f"{SCHEMA}.").removeprefix(f"{USERS}.")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", name):
        raise ValueError(f"must be the name of one column of {SCHEMA}.{USERS}, of letters, digits and _")
    if name in REQUEST_PARAMETERS:
        raise ValueError(
            f"must not be {', '.join(REQUEST_PARAMETERS)}: requests have a parameter of that name"
        )
    return name


def _tokens(text: str) -> str:
    tokens = [token.strip() for token in text.split(",")]
    if not all(_TOKEN.fullmatch(token) for token in tokens):
        raise ValueError(
            "must be tokens of at least 16 letters, digits and any of -._~+/ with commas between them"
        )
    return ",".join(tokens)


def _token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError("must be a token of at least 16 letters, digits and any of -._~+/")
    return text


DASK_SCHEMES = TCP, TLS = ("tcp", "tls")


def _dask_address(text: str) -> str:
    _url(*DASK_SCHEMES)(text)
    parts = urlsplit(text)
    if not parts.hostname or not parts.port or "@" in parts.netloc or parts.path or parts.query:
        raise ValueError("must be like tcp://host:8786 or tls://host:8786")
    return text


ROLES = VIEWER, OPERATOR = ("viewer", "operator")
"""Roles of the console's users: a viewer looks at pages, an operator also acts."""

USER_NAME = re.compile(r"[A-Za-z0-9._@+-]{1,64}")
"""Names of the console's users."""

_CONSOLE_USER = re.compile(rf"{USER_NAME.pattern}:({'|'.join(ROLES)}):scrypt:\d+:\d+:\d+\$\w+\$[0-9a-f]+")
"""One user of the console: name, role and hash of the password."""


def _console_users(text: str) -> str:
    users = text.split()
    if not all(_CONSOLE_USER.fullmatch(user) for user in users):
        raise ValueError(
            "must be users as `python -m console password NAME` prints them, with spaces between them; "
            "in .env put them in single quotes"
        )
    names = [user.partition(":")[0] for user in users]
    if len(set(names)) < len(names):
        raise ValueError("must name each user once")
    return " ".join(users)


def _url_prefix(text: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", text):
        raise ValueError("must be a path like /overnight/console")
    return text.rstrip("/")


def _user_name(text: str) -> str:
    if not USER_NAME.fullmatch(text):
        raise ValueError("must be a name of letters, digits and any of ._@+-")
    return text


def _long_text(text: str) -> str:
    if len(text) < 16:
        raise ValueError("must have at least 16 characters")
    return text


def _log_level(text: str) -> str:
    levels = ("DEBUG", "INFO", "WARNING", "ERROR")
    if text.upper() not in levels:
        raise ValueError("must be one of " + ", ".join(levels))
    return text.upper()


def _switch(text: str) -> bool:
    if text.lower() not in (ON, OFF):
        raise ValueError(f"must be {ON} or {OFF}")
    return text.lower() == ON


def setting(env: str, default: T, parse: Parse, meaning: str, *, secret: bool = False) -> T:
    """Declare one setting: its environment variable, default, check and meaning."""
    metadata = {"env": env, "parse": parse, "meaning": meaning, "secret": secret}
    result: T = field(default=default, repr=not secret, metadata=metadata)
    return result


@dataclass(frozen=True)
class StoreSettings:
    """Connections to Postgres and Redis."""

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
    redis_cluster: bool = setting(
        "OVERNIGHT_REDIS_CLUSTER", False, _switch, "on: REDIS_URL names one node of a Redis Cluster"
    )
    key_prefix: str = setting("OVERNIGHT_KEY_PREFIX", "recs", _word, "first part of every Redis key")

    def describe_default(self, name: str) -> str | None:
        """Return what to do about a URL that has its default; None if it has another value."""
        (declared,) = (each for each in fields(self) if each.name == name)
        if getattr(self, name) != declared.default:
            return None
        return f"{declared.metadata['env']} is not set, or is its default: set it; in .env put it in quotes"


@dataclass(frozen=True)
class NightSettings:
    """What a night builds and keeps, and how much memory it may use."""

    top_n: int = setting("OVERNIGHT_TOP_N", 100, _integer(1, 10_000), "posts in a user's list")
    similar_n: int = setting(
        "OVERNIGHT_SIMILAR_N", 20, _integer(0, 1_000), "posts in a post's list of similar posts; 0 makes none"
    )
    memory_budget_mib: int = setting(
        "OVERNIGHT_MEMORY_BUDGET_MIB",
        512,
        _integer(16, 1_048_576),
        "memory for scoring; sets the number of users scored at a time",
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
        "what the models learn: liked-if-viewed, liked or ranked; "
        "auto: one of the first two, chosen on data before the holdout",
    )
    training_rows: int = setting(
        "OVERNIGHT_TRAINING_ROWS",
        2_000_000,
        _integer(100, 100_000_000),
        "maximum number of training examples; above it, whole users are sampled",
    )
    ignore_columns: str = setting(
        "OVERNIGHT_IGNORE_COLUMNS",
        "",
        _further_columns,
        "further columns of the views that the models do not use, like users.logins,posts.shares",
    )
    embeddings: str = setting(
        "OVERNIGHT_EMBEDDINGS",
        EMBEDDINGS_AUTO,
        _one_of(EMBEDDINGS_AUTO, EMBEDDINGS_ON, EMBEDDINGS_OFF),
        "embed texts: on, off, or auto (on where its packages are installed)",
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
        "memory for copying and counting interactions; the rest spills to OVERNIGHT_STORE_DIR",
    )
    keep_runs: int = setting(
        "OVERNIGHT_KEEP_RUNS", 3, _integer(1, 100), "runs kept per variant, including the live one"
    )
    prune_after_minutes: int = setting(
        "OVERNIGHT_PRUNE_AFTER_MINUTES",
        60,
        _integer(0, 525_600),
        "how long a run keeps its keys after it stops being live, regardless of OVERNIGHT_KEEP_RUNS",
    )
    forget_max_share: float = setting(
        "OVERNIGHT_FORGET_MAX_SHARE",
        0.01,
        _number(0, 1),
        "largest share of a run's users that refreshes forget by themselves once recs.users lacks them; "
        "10 always",
    )


@dataclass(frozen=True)
class DaskSettings:
    """A Dask cluster that scores users and writes their lists, in place of threads of one machine."""

    scheduler: str = setting(
        "OVERNIGHT_DASK",
        "",
        _dask_address,
        "Dask scheduler whose workers score and write, like tcp://host:8786 or tls://host:8786; "
        "empty: threads of this machine",
    )
    dask_token: str = setting(
        "OVERNIGHT_DASK_TOKEN",
        "",
        _token,
        "token of at least 16 characters that every process of the Dask cluster proves to have before it is "
        "listened to; empty: none",
        secret=True,
    )
    dask_tls_ca: str = setting(
        "OVERNIGHT_DASK_TLS_CA",
        "",
        _text,
        "file with the certificates of the cluster's authority, for tls://",
    )
    dask_tls_cert: str = setting(
        "OVERNIGHT_DASK_TLS_CERT", "", _text, "file with this process's certificate, for tls://"
    )
    dask_tls_key: str = setting(
        "OVERNIGHT_DASK_TLS_KEY", "", _text, "file with the key of this process's certificate, for tls://"
    )
    dask_timeout_seconds: int = setting(
        "OVERNIGHT_DASK_TIMEOUT_SECONDS",
        600,
        _integer(1, 86_400),
        "how long the batch waits for a worker, or for the next result, before it fails",
    )

    @property
    def tls_files(self) -> dict[str, str]:
        """Variable -> path of each file of TLS, empty if it is not set."""
        return {
            "OVERNIGHT_DASK_TLS_CA": self.dask_tls_ca,
            "OVERNIGHT_DASK_TLS_CERT": self.dask_tls_cert,
            "OVERNIGHT_DASK_TLS_KEY": self.dask_tls_key,
        }


@dataclass(frozen=True)
class FeedSettings:
    """The rules that a feed asks for in addition to the order of the scores."""

    leave_out: str = setting(
        "OVERNIGHT_LEAVE_OUT",
        LEAVE_OUT_LIKED,
        _one_of(LEAVE_OUT_LIKED, LEAVE_OUT_VIEWED),
        "posts left out of a user's list: liked, or viewed (liked and viewed ones)",
    )
    most_per_topic: int = setting(
        "OVERNIGHT_MOST_PER_TOPIC",
        0,
        _integer(0, 1_000),
        "largest number of posts of one topic in the first places, below OVERNIGHT_TOPIC_WINDOW; 0: no limit",
    )
    topic_window: int = setting(
        "OVERNIGHT_TOPIC_WINDOW",
        10,
        _integer(2, 1_000),
        "number of first places that OVERNIGHT_MOST_PER_TOPIC is about; at most OVERNIGHT_TOP_N",
    )
    explore_places: int = setting(
        "OVERNIGHT_EXPLORE_PLACES",
        0,
        _zero_or(2, 1_000),
        "one of so many places, at most OVERNIGHT_TOP_N, is for a post that nobody knows yet; 0: none",
    )
    explore_max_views: int = setting(
        "OVERNIGHT_EXPLORE_MAX_VIEWS",
        50,
        _integer(1, 1_000_000),
        "a post with fewer views than this is one that nobody knows yet",
    )
    popular_by: str = setting(
        "OVERNIGHT_POPULAR_BY",
        "",
        _attribute,
        "column of recs.users by whose values popular posts are listed for users without a list; empty: none",
    )


@dataclass(frozen=True)
class GateSettings:
    """Limits that a run must meet to go live."""

    below_popularity: float = setting(
        "OVERNIGHT_GATE_BELOW_POPULARITY",
        0.0,
        _number(0, 1),
        "largest shortfall of NDCG@10 over the full catalogue below popularity's; 1 refuses nothing",
    )
    below_recency_popularity: float = setting(
        "OVERNIGHT_GATE_BELOW_RECENCY_POPULARITY",
        0.0,
        _number(0, 1),
        "largest shortfall of NDCG@10 over the full catalogue below recency popularity's; 1 refuses nothing",
    )
    min_auc: float = setting(
        "OVERNIGHT_GATE_MIN_AUC",
        0.5,
        _number(0, 1),
        "smallest ROC AUC on the held-out rows (0.5 is random order); refused only if the whole "
        "95 % interval is lower; 0 refuses nothing",
    )
    ndcg_drop: float = setting(
        "OVERNIGHT_GATE_NDCG_DROP",
        0.005,
        _number(0, 1),
        "largest drop in NDCG@10 over the full catalogue below the live run; refused only if the whole "
        "95 % interval is worse",
    )
    auc_drop: float = setting(
        "OVERNIGHT_GATE_AUC_DROP",
        0.01,
        _number(0, 1),
        "largest drop in ROC AUC below the live run; refused only if the whole 95 % interval is worse",
    )
    hitrate_drop: float = setting(
        "OVERNIGHT_GATE_HITRATE_DROP",
        0.02,
        _number(0, 1),
        "largest drop in HitRate@5 below the live run; refused only if the whole 95 % interval is worse",
    )
    users_covered: float = setting(
        "OVERNIGHT_GATE_USERS_COVERED",
        1.0,
        _number(0, 1),
        "smallest share of the requested users that have a list",
    )
    users_kept: float = setting(
        "OVERNIGHT_GATE_USERS_KEPT",
        0.7,
        _number(0, 1),
        "smallest number of users of the network, as a share of the live run's",
    )
    full_lists: float = setting(
        "OVERNIGHT_GATE_FULL_LISTS",
        1.0,
        _number(0, 1),
        "smallest share of full lists: N posts, or all posts that the user may get",
    )
    lists_of_five: float = setting(
        "OVERNIGHT_GATE_LISTS_OF_FIVE",
        0.5,
        _number(0, 1),
        "smallest share of lists with five posts, or with all posts of a smaller catalogue",
    )
    coverage: float = setting(
        "OVERNIGHT_GATE_COVERAGE",
        0.001,
        _number(0, 1),
        "smallest share of the posts that are in the first five of some list",
    )
    coverage_of_live: float = setting(
        "OVERNIGHT_GATE_COVERAGE_OF_LIVE",
        0.3,
        _number(0, 1),
        "smallest number of posts in the first fives, as a share of the live run's for the same users",
    )
    overlap_low: float = setting(
        "OVERNIGHT_GATE_OVERLAP_LOW",
        0.02,
        _number(0, 1),
        "smallest mean overlap of users' first fives with the live run's",
    )
    overlap_high: float = setting(
        "OVERNIGHT_GATE_OVERLAP_HIGH",
        1.0,
        _number(0, 1),
        "largest mean overlap; below 1 refuses a run that changes nothing",
    )
    not_finite: int = setting(
        "OVERNIGHT_GATE_NOT_FINITE",
        0,
        _integer(0, 10**9),
        "largest number of scores that are NaN or infinite",
    )
    liked_served: int = setting(
        "OVERNIGHT_GATE_LIKED_SERVED",
        0,
        _integer(0, 10**9),
        "largest number of posts in lists that must be left out, like liked ones",
    )


@dataclass(frozen=True)
class ExperimentSettings:
    """The A/B test and its exposures."""

    salt: str = setting(
        "OVERNIGHT_EXPERIMENT_SALT", "overnight", _text, "salt of the split, stored by the first run"
    )
    percent_test: int = setting(
        "OVERNIGHT_PERCENT_TEST", 50, _integer(0, 100), "percentage of users in test, stored by the first run"
    )
    exposures: bool = setting(
        "OVERNIGHT_EXPOSURES",
        True,
        _switch,
        "on: record which variant each first page of a feed came from, for the experiment",
    )
    exposures_batches: int = setting(
        "OVERNIGHT_EXPOSURES_BATCHES",
        20_000,
        _integer(100, 10_000_000),
        "maximum number of batches of up to 500 exposures in Redis; above it, the oldest are dropped",
    )
    exposures_keep_days: int = setting(
        "OVERNIGHT_EXPOSURES_KEEP_DAYS", 90, _integer(1, 3_650), "days that exposures are kept in Postgres"
    )


@dataclass(frozen=True)
class ScheduleSettings:
    """When the scheduler runs the batch, and where it sends alerts."""

    nightly_cron: str = setting(
        "OVERNIGHT_NIGHTLY_CRON", "0 3 * * *", _cron, "when the scheduler runs the night"
    )
    timezone: str = setting("OVERNIGHT_TIMEZONE", "UTC", _timezone, "time zone of the cron expression")
    late_after_minutes: int = setting(
        "OVERNIGHT_LATE_AFTER_MINUTES",
        120,
        _integer(1, 10_080),
        "a night is late if no run is live this long after it was due",
    )
    webhook_url: str = setting(
        "OVERNIGHT_WEBHOOK_URL",
        "",
        _webhook,
        "URL that alerts are posted to as JSON; empty: no alerts",
        secret=True,
    )
    refresh_minutes: int = setting(
        "OVERNIGHT_REFRESH_MINUTES",
        5,
        _integer(0, 1_440),
        "how often the scheduler refreshes the lists of users who acted; 0: never",
    )


@dataclass(frozen=True)
class ServingSettings:
    """The HTTP API."""

    host: str = setting("OVERNIGHT_HOST", "127.0.0.1", _word, "address that serving listens on")
    port: int = setting("OVERNIGHT_PORT", 8000, _integer(1, 65535), "port that serving listens on")
    workers: int = setting("OVERNIGHT_WORKERS", 2, _integer(1, 256), "gunicorn worker processes")
    redis_timeout_ms: int = setting(
        "OVERNIGHT_REDIS_TIMEOUT_MS",
        50,
        _integer(1, 10_000),
        "how long a request waits for Redis before it falls back to popular posts",
    )
    redis_connect_timeout_ms: int = setting(
        "OVERNIGHT_REDIS_CONNECT_TIMEOUT_MS",
        1000,
        _integer(1, 60_000),
        "time limit for opening a connection to Redis (TCP, TLS, sign-in); requests do not wait for that",
    )
    keep_alive_seconds: int = setting(
        "OVERNIGHT_KEEP_ALIVE_SECONDS",
        75,
        _integer(1, 3600),
        "how long an idle client connection is kept; must be longer than the proxy keeps it",
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
        "age of a live run above which /readyz warns",
    )
    texts_in_memory: int = setting(
        "OVERNIGHT_TEXTS_IN_MEMORY",
        200_000,
        _integer(1, 100_000_000),
        "maximum number of post texts that a worker keeps in memory (least recently used are dropped)",
    )
    metrics_port: int = setting(
        "OVERNIGHT_METRICS_PORT",
        0,
        _integer(0, 65535),
        "separate port for metrics; 0: metrics on the API's port",
    )
    api_tokens: str = setting(
        "OVERNIGHT_API_TOKENS",
        "",
        _tokens,
        "bearer tokens accepted by the API, separated by commas; empty: no authentication",
        secret=True,
    )
    access_log: bool = setting("OVERNIGHT_ACCESS_LOG", False, _switch, "on: log every request")


@dataclass(frozen=True)
class ConsoleSettings:
    """The web pages for operators, analysts and support."""

    console_host: str = setting(
        "OVERNIGHT_CONSOLE_HOST",
        "127.0.0.1",
        _word,
        "address that the console listens on; without OVERNIGHT_CONSOLE_USERS a loopback address",
    )
    console_port: int = setting(
        "OVERNIGHT_CONSOLE_PORT", 8002, _integer(1, 65535), "port that the console listens on"
    )
    console_users: str = setting(
        "OVERNIGHT_CONSOLE_USERS",
        "",
        _console_users,
        "who may sign in to the console: lines of `python -m console password NAME`, with spaces between "
        "them; empty: nobody signs in",
        secret=True,
    )
    console_secret: str = setting(
        "OVERNIGHT_CONSOLE_SECRET",
        "",
        _long_text,
        "key that signs the console's cookies; empty: a new one at each start, which signs everybody out",
        secret=True,
    )
    read_only: bool = setting(
        "OVERNIGHT_CONSOLE_READ_ONLY", True, _switch, "on: the console can change nothing, whoever signs in"
    )
    local_operator: str = setting(
        "OVERNIGHT_CONSOLE_LOCAL_OPERATOR",
        "",
        _user_name,
        "name of the operator that everybody is who reaches a console without users on a loopback address; "
        "empty: everybody is a viewer",
    )
    url_prefix: str = setting(
        "OVERNIGHT_CONSOLE_PREFIX", "", _url_prefix, "path under which a proxy shows the console; empty: /"
    )
    trust_proxy: bool = setting(
        "OVERNIGHT_CONSOLE_TRUST_PROXY",
        False,
        _switch,
        "on: the console believes X-Forwarded-For, -Proto and -Host, which one proxy must set",
    )
    serving_url: str = setting(
        "OVERNIGHT_CONSOLE_SERVING_URL",
        "http://127.0.0.1:8000",
        _url("http", "https"),
        "address of serving, whose /readyz the console shows",
    )


@dataclass(frozen=True)
class Settings:
    """All settings of all processes, in sections. Read them with `Settings.from_environment()`."""

    stores: StoreSettings = field(default_factory=StoreSettings)
    night: NightSettings = field(default_factory=NightSettings)
    dask: DaskSettings = field(default_factory=DaskSettings)
    feed: FeedSettings = field(default_factory=FeedSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    experiment: ExperimentSettings = field(default_factory=ExperimentSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    serving: ServingSettings = field(default_factory=ServingSettings)
    console: ConsoleSettings = field(default_factory=ConsoleSettings)
    log_level: str = setting("OVERNIGHT_LOG_LEVEL", "INFO", _log_level, "DEBUG, INFO, WARNING or ERROR")

    def __post_init__(self) -> None:
        if self.night.history_fraction + self.night.holdout_fraction >= 0.95:
            raise SettingsError(
                "OVERNIGHT_HISTORY_FRACTION and OVERNIGHT_HOLDOUT_FRACTION together must be under 0.95, "
                "so that some data is left to train on"
            )
        if self.gate.overlap_low > self.gate.overlap_high:
            raise SettingsError(
                "OVERNIGHT_GATE_OVERLAP_LOW must not be above OVERNIGHT_GATE_OVERLAP_HIGH: "
                "the gate would refuse every run"
            )
        self._check_feed()
        self._check_dask()
        if self.serving.metrics_port == self.serving.port:
            raise SettingsError(
                "OVERNIGHT_METRICS_PORT must differ from OVERNIGHT_PORT; 0 serves metrics on OVERNIGHT_PORT"
            )

    def _check_dask(self) -> None:
        """Refuse TLS without its files: Dask would connect without a certificate, or not at all."""
        dask, files = self.dask, self.dask.tls_files
        missing = [name for name, path in files.items() if not path]
        if dask.scheduler.startswith(f"{TLS}://") and missing:
            raise SettingsError(f"OVERNIGHT_DASK={dask.scheduler} needs {' and '.join(missing)}")
        if dask.scheduler.startswith(f"{TCP}://") and len(missing) < len(files):
            raise SettingsError(
                f"OVERNIGHT_DASK={dask.scheduler} does not use {', '.join(n for n in files if files[n])}: "
                f"write {TLS}:// for an encrypted connection"
            )

    def _check_feed(self) -> None:
        """Refuse rules of the feed that could not change any list."""
        feed, top_n = self.feed, self.night.top_n
        if feed.explore_places > top_n:
            raise SettingsError(
                f"OVERNIGHT_EXPLORE_PLACES={feed.explore_places} must not be above OVERNIGHT_TOP_N={top_n}: "
                "no list would have an explored place"
            )
        if feed.most_per_topic == 0:
            return
        if feed.topic_window > top_n:
            raise SettingsError(
                f"OVERNIGHT_TOPIC_WINDOW={feed.topic_window} must not be above OVERNIGHT_TOP_N={top_n}: "
                "no list has so many places"
            )
        if feed.most_per_topic >= feed.topic_window:
            raise SettingsError(
                f"OVERNIGHT_MOST_PER_TOPIC={feed.most_per_topic} must be below "
                f"OVERNIGHT_TOPIC_WINDOW={feed.topic_window}, or 0 for no limit: it would limit nothing"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read every setting; an unset or empty variable gives the default.

        Raises
        ------
        SettingsError
            With the variable and what it must be; never with a secret.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        for _, declared in _declarations():
            text = environment.get(declared.metadata["env"], "")
            if text:
                values[declared.name] = _parse(declared, text)
        return cls.of(**values)

    @classmethod
    def of(cls, **values: Any) -> Settings:
        """Return the defaults with some settings changed, given by name without section."""
        return cls().replace(**values)

    def replace(self, **values: Any) -> Settings:
        """Return these settings with some changed, given by name without section.

        Raises
        ------
        TypeError
            There is no setting with that name.
        """
        changed: dict[str, dict[str, Any]] = {}
        for section, declared in _declarations():
            if declared.name in values:
                changed.setdefault(section, {})[declared.name] = values.pop(declared.name)
        if values:
            raise TypeError(f"no such setting: {', '.join(values)}")
        top = changed.pop(TOP, {})
        sections = {name: replace(getattr(self, name), **fields) for name, fields in changed.items()}
        return replace(self, **sections, **top)

    def to_environment(self, *without: str) -> dict[str, str]:
        """Return variables that give a child process these settings, leaving out whole sections.

        The values hold secrets.
        """
        return {
            declared.metadata["env"]: _as_text(
                getattr(getattr(self, section) if section else self, declared.name)
            )
            for section, declared in _declarations()
            if section not in without
        }

    @classmethod
    def declared(cls) -> list[dict[str, Any]]:
        """Return each setting's `section`, `name`, `env`, `default` and `meaning`, in order, for the docs."""
        return [
            {
                "section": section,
                "name": f.name,
                "env": f.metadata["env"],
                "default": _as_text(f.default),
                "meaning": f.metadata["meaning"],
            }
            for section, f in _declarations()
        ]

    def secrets(self) -> list[str]:
        """Return what logs must not show: passwords in URLs, tokens, and the webhook URL.

        Anyone who knows the path of a webhook can post to it. A path too short to
        be a secret is omitted, as it may be part of other text.
        """
        urls = [urlsplit(url) for url in (self.stores.database_url, self.stores.redis_url)]
        found = [url.password for url in urls if url.password]
        for url in urls:
            options = parse_qs(url.query)
            found += [value for name in SECRET_OPTIONS for value in options.get(name, [])]
        webhook = self.schedule.webhook_url
        path = webhook.partition("://")[2].partition("/")[2]
        found += [secret for secret in (webhook, path) if len(secret) >= MIN_SECRET_LENGTH]
        found += [token for token in self.serving.api_tokens.split(",") if token]
        found += [token for token in (self.dask.dask_token,) if token]
        found += [user.split(":", 2)[2] for user in self.console.console_users.split()]
        return found + [secret for secret in (self.console.console_secret,) if secret]


TOP = ""
"""Section name of settings without a section."""


def _declarations() -> Iterator[tuple[str, Field[Any]]]:
    """Yield section and field of every setting; names are unique across sections."""
    for section in fields(Settings):
        if "env" in section.metadata:
            yield TOP, section
        else:
            for declared in fields(section.default_factory):  # type: ignore[arg-type]
                yield section.name, declared


NOT_OURS = ("OVERNIGHT_DEMO_DIR",)
"""Variables with the prefix of the settings that other programs read: the demo."""


def unknown_variables(environment: Mapping[str, str] | None = None) -> dict[str, str | None]:
    """Return the variables that look like settings and are none -> the setting with the most similar name.

    The value is None if no name is similar.
    """
    environment = os.environ if environment is None else environment
    prefix = "OVERNIGHT_"
    names = [declared.metadata["env"] for _, declared in _declarations()]
    known = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    unknown = sorted(
        name for name in environment if name.startswith(prefix) and name not in {*names, *NOT_OURS}
    )
    similar = (get_close_matches(name.removeprefix(prefix), known, 1) for name in unknown)
    return {name: known[found[0]] if found else None for name, found in zip(unknown, similar, strict=True)}


def _as_text(value: object) -> str:
    return {True: ON, False: OFF}[value] if isinstance(value, bool) else str(value)


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
