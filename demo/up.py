"""`up`: start the servers, run the night, start serving and the console; check answers or wait for Ctrl-C."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import redis
import sqlalchemy as sa

from batch.formatting import echo
from batch.redis_client import live_run_id
from contract.errors import LockedError
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.settings import Settings
from demo.checks import Expected, check_answers, check_pages, choose_examples, print_examples
from demo.gunicorn import CONSOLE, SERVING, Gunicorn
from demo.network_folders import SIMULATED, LoadedNetwork, NetworkFolder, name_source, read_loaded_network
from demo.postgres import make_engine
from demo.processes import (
    POLL_SECONDS,
    DemoError,
    DemoUsageError,
    Stopped,
    find_lock_holder,
    hold_lock,
    ignore_signals,
    print_duration,
    raise_on_signal,
    run_module,
)
from demo.real_network import detect_format
from demo.servers import Servers, prepare_servers, up_lock

MAX_USERS_SCORED_IN_FULL = 50_000
DEFAULT_LIMIT_USERS = 2000
"""Users scored of a real network with more than MAX_USERS_SCORED_IN_FULL, to keep the demo short."""

CONSOLE_HOST = "127.0.0.1"
"""The console listens here alone, since nobody signs in to it."""

COUNT_USERS = sa.text("SELECT count(*) FROM recs.users")


@dataclass(frozen=True)
class UpOptions:
    """Options of `up`.

    Attributes
    ----------
    network
        Folder of a real network's files. None uses the loaded network if the user gave
        its name, and simulates a network otherwise.
    limit_users
        Number of users to score; None scores all, or 2,000 of a real network with more than 50,000.
    once
        Check the answers and stop, instead of waiting for Ctrl-C.
    """

    network: Path | None
    limit_users: int | None
    once: bool


class _Apps(NamedTuple):
    serving: Gunicorn
    console: Gunicorn


def up(home: NetworkFolder, settings: Settings, options: UpOptions) -> None:
    """Start everything, wait for Ctrl-C or check the answers, and stop everything.

    Raises
    ------
    LockedError
        If another `up` uses the folder.
    DemoUsageError
        If a port is in use, or the name belongs to another folder's network.
    FormatError
        If the network's folder does not exist or is in no known format.
    DemoError
        If a server does not start, or an answer is wrong.
    Stopped
        On a signal before everything was started.
    """
    if options.network is not None:
        detect_format(options.network)
    servers = prepare_servers(home.path)
    apps = _Apps(
        Gunicorn(servers.folder, SERVING, settings.serving.host, settings.serving.port),
        Gunicorn(servers.folder, CONSOLE, CONSOLE_HOST, settings.console.console_port),
    )
    if apps.serving.port == apps.console.port:
        raise DemoUsageError(f"serving and the console cannot both listen on port {apps.serving.port}")
    try:
        with hold_lock(up_lock(servers.folder), wait=False), raise_on_signal():
            for app in apps:
                app.stop()  # a killed `up` may have left one
                app.check_port()
            try:
                _run(home, servers, apps, settings, options)
            finally:
                _stop(servers, apps)
    except BlockingIOError:
        process = find_lock_holder(up_lock(servers.folder))
        raise LockedError(
            f"another `python -m demo up` (process {process.pid if process else 'unknown'}) uses "
            f"{servers.folder}; stop it with Ctrl-C or `python -m demo stop`"
        ) from None


def _stop(servers: Servers, apps: _Apps) -> None:
    ignore_signals()
    with ExitStack() as stack:  # each is stopped even if another one cannot be
        stack.callback(_print_stopped)
        stack.callback(servers.stop)
        for app in apps:
            stack.callback(app.stop)


def _print_stopped() -> None:
    with suppress(OSError):  # the terminal or the reader of our output may be gone
        echo("==> Everything is stopped; the data stays")


def _run(home: NetworkFolder, servers: Servers, apps: _Apps, settings: Settings, options: UpOptions) -> None:
    with print_duration("Starting Postgres and Valkey"):
        servers.start()
    engine = make_engine(servers.postgres.url())
    keys = Keys(settings.stores.key_prefix)
    network = _load_network(home, servers, engine, options)
    home.record_use(network)
    with redis.Redis.from_url(servers.valkey.url(), decode_responses=True) as client:
        _run_night(servers, client, keys, network, options)
        with print_duration(f"Starting serving on {apps.serving.url}"):
            apps.serving.start(servers.environment())
        with print_duration(f"Starting the console on {apps.console.url}"):
            apps.console.start(servers.environment() | _console_environment(apps.serving))
        expected = Expected.of_live_run(engine, client, keys)
        examples = choose_examples(expected)
        if options.once:
            personal = check_answers(examples, expected, apps.serving.url)
            check_pages(examples, expected, personal, apps.console.url)
            echo("Every answer is right.")
            return
    print_examples(examples, apps.serving.url, apps.console.url, home.option)
    with suppress(Stopped):
        while all(app.is_running() for app in apps):
            time.sleep(POLL_SECONDS)
        ended = next(app for app in apps if not app.is_running())
        raise DemoError(f"{ended.app.package} has ended by itself; see {ended.log}")


def _console_environment(serving: Gunicorn) -> dict[str, str]:
    """Return the console's settings: everybody who reaches it on this machine is the operator `demo`.

    An empty variable is the default.
    """
    return {
        "OVERNIGHT_CONSOLE_LOCAL_OPERATOR": "demo",
        "OVERNIGHT_CONSOLE_READ_ONLY": "off",
        "OVERNIGHT_CONSOLE_SERVING_URL": serving.url,
        "OVERNIGHT_CONSOLE_USERS": "",
        "OVERNIGHT_CONSOLE_PREFIX": "",
        "OVERNIGHT_CONSOLE_TRUST_PROXY": "",
    }


def _load_network(
    home: NetworkFolder, servers: Servers, engine: sa.Engine, options: UpOptions
) -> LoadedNetwork:
    """Load the network of the options unless it is loaded already."""
    loaded = read_loaded_network(engine)
    source = name_source(options.network)
    any_source = options.network is None and home.name != SIMULATED
    if loaded is not None and (loaded.source == source or any_source):
        echo(f"==> Network already loaded ({loaded.source}): {loaded.size}")
        return loaded
    home.check_source(loaded, source)
    title = "Simulating a network" if options.network is None else f"Loading {options.network}"
    with print_duration(title):
        command = ["simulate"] if options.network is None else ["load", str(options.network.resolve())]
        run_module("demo", command, servers.environment())
    network = read_loaded_network(engine)
    if network is None:
        raise DemoError("the network was loaded but cannot be found")
    return network


def _default_limit_users(engine: sa.Engine, network: LoadedNetwork) -> int | None:
    """Return how many users to score without --limit-users; None scores all."""
    with engine.connect() as connection:
        users = connection.scalar(COUNT_USERS) or 0
    is_large = network.source != SIMULATED and users > MAX_USERS_SCORED_IN_FULL
    return DEFAULT_LIMIT_USERS if is_large else None


def _run_night(
    servers: Servers, client: redis.Redis, keys: Keys, network: LoadedNetwork, options: UpOptions
) -> None:
    """Run the night unless every variant serves a run of this network; delete an older network's keys."""
    runs = [live_run_id(client, keys, variant) for variant in VARIANTS]
    oldest = f"{network.at:%Y%m%dT%H%M%SZ}"  # a run id begins with its time
    if all(run is not None and str(run) >= oldest for run in runs):
        unused = "; --limit-users is for the next night" if options.limit_users else ""
        echo(f"==> Night already run: {', '.join(map(str, runs))} are live{unused}")
        return
    if any(run is not None and str(run) < oldest for run in runs):
        servers.valkey.delete_keys()
    limit = options.limit_users or _default_limit_users(make_engine(servers.postgres.url()), network)
    arguments = ["run", "--variant", "all"]
    arguments += [] if limit is None else ["--limit-users", str(limit)]
    with print_duration(f"Running the night (python -m batch {' '.join(arguments)})"):
        run_module("batch", arguments, servers.environment())
