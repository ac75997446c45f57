"""`up`: start the servers, run the night, start apps and scheduler; check answers or wait for Ctrl-C."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import combinations
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
from demo.app_check import check_app
from demo.checks import Addresses, Expected, check_answers, check_pages, choose_examples, print_examples
from demo.dates import NOW
from demo.gunicorn import CONSOLE, NETWORK_APP, SERVING, Gunicorn
from demo.network_app.config import Config
from demo.network_folders import SIMULATED, LoadedNetwork, NetworkFolder, name_source, read_loaded_network
from demo.postgres import make_engine
from demo.processes import (
    POLL_SECONDS,
    ChildProcess,
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

TOPIC_TASTE = "1"
"""A newcomer's likes in one community then say much about what else they like."""

LOOPBACK = "127.0.0.1"
"""The network's app and the console listen here alone: nobody signs in to the console."""

LIVING = {"OVERNIGHT_REFRESH_MINUTES": "1", "OVERNIGHT_EXPOSURES": "on"}
"""Variables of a network in which people act, for all processes, unless the environment sets them."""

NEWEST = sa.text("SELECT max(time) FROM feed_action")
"""Time of the last interaction of the network as it was loaded."""

MAX_AGE = timedelta(days=2)


@dataclass(frozen=True)
class UpOptions:
    """Options of `up`.

    Attributes
    ----------
    network
        Folder of a real network's files. None uses the loaded network if the user gave
        its name, and simulates a network otherwise.
    limit_users
        Number of users to score in each night; None scores all.
    app_port
        Port of the network's app.
    keep_dates
        Load the network as it is, instead of shifting its dates so that it ends now.
    once
        Check the answers and stop, instead of waiting for Ctrl-C.
    """

    network: Path | None
    limit_users: int | None
    app_port: int
    keep_dates: bool
    once: bool


class _Apps(NamedTuple):
    network: Gunicorn
    serving: Gunicorn
    console: Gunicorn


@dataclass(frozen=True)
class _Children:
    """What runs in addition to the servers, and stops with `up`."""

    apps: _Apps
    scheduler: ChildProcess

    def __iter__(self) -> Iterator[ChildProcess]:
        yield from self.apps
        yield self.scheduler


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
        Gunicorn(servers.folder, NETWORK_APP, LOOPBACK, options.app_port),
        Gunicorn(servers.folder, SERVING, settings.serving.host, settings.serving.port),
        Gunicorn(servers.folder, CONSOLE, LOOPBACK, settings.console.console_port),
    )
    children = _Children(apps, ChildProcess(servers.folder, "scheduler"))
    _check_ports(apps)
    try:
        with hold_lock(up_lock(servers.folder), wait=False), raise_on_signal():
            for child in children:
                child.stop()  # a killed `up` may have left one
            for app in apps:
                app.check_port()
            try:
                _run(home, servers, children, settings, options)
            finally:
                _stop(servers, children)
    except BlockingIOError:
        process = find_lock_holder(up_lock(servers.folder))
        raise LockedError(
            f"another `python -m demo up` (process {process.pid if process else 'unknown'}) uses "
            f"{servers.folder}; stop it with Ctrl-C or `python -m demo stop`"
        ) from None


def _check_ports(apps: _Apps) -> None:
    """Raise DemoUsageError if two apps would listen on one port."""
    for one, other in combinations(apps, 2):
        if one.port == other.port:
            raise DemoUsageError(
                f"{one.app.title} and {other.app.title} cannot both listen on port {one.port}"
            )


def _stop(servers: Servers, children: _Children) -> None:
    ignore_signals()
    with ExitStack() as stack:  # each is stopped even if another one cannot be
        stack.callback(_print_stopped)
        stack.callback(servers.stop)
        for child in children:
            stack.callback(child.stop)
        for child in children:  # all at once
            child.request_stop()


def _print_stopped() -> None:
    with suppress(OSError):  # the terminal or the reader of our output may be gone
        echo("==> Everything is stopped; the data stays")


def _run(
    home: NetworkFolder, servers: Servers, children: _Children, settings: Settings, options: UpOptions
) -> None:
    with print_duration("Starting Postgres and Valkey"):
        servers.start()
    environment = servers.environment() | {name: os.environ.get(name) or LIVING[name] for name in LIVING}
    engine = make_engine(servers.postgres.url())
    keys = Keys(settings.stores.key_prefix)
    network = _load_network(home, servers, engine, options)
    home.record_use(network)
    if not options.keep_dates:
        _warn_of_old_dates(home, engine, network)
    apps = children.apps
    with redis.Redis.from_url(servers.valkey.url(), decode_responses=True) as client:
        night = ["run", "--variant", "all"]
        if options.limit_users is not None:
            night += ["--limit-users", str(options.limit_users)]
            echo(
                f"==> Nights score the first {options.limit_users:,} users: all others, and people who "
                "register, get popular posts"
            )
        if _needs_night(servers, client, keys, network, options):
            with print_duration(f"Running the night (python -m batch {' '.join(night)})"):
                run_module("batch", night, environment)
        for app in (apps.serving, apps.console, apps.network):
            with print_duration(f"Starting {app.app.title} on {app.url}"):
                app.start_ready(environment | dict(_app_environment(app, apps, servers.folder, environment)))
        expected = Expected.of_live_run(engine, client, keys)
        examples = choose_examples(expected)
        if options.once:
            personal = check_answers(examples, expected, apps.serving.url)
            check_pages(examples, expected, personal, apps.console.url)
            check_app(apps.network.url)
            echo("Every answer is right.")
            return
    children.scheduler.start(["-m", "scheduler", "--", sys.executable, "-m", "batch", *night], environment)
    print_examples(examples, Addresses(*(app.url for app in apps)), home.command("exec"))
    with suppress(Stopped):
        while all(child.is_running() for child in children):
            time.sleep(POLL_SECONDS)
        ended = next(child for child in children if not child.is_running())
        raise DemoError(f"{ended.name} has ended by itself; see {ended.log}")


def _app_environment(
    app: Gunicorn, apps: _Apps, folder: Path, environment: Mapping[str, str]
) -> Mapping[str, str]:
    """Return an app's own variables: its address, and where it finds the others.

    Everybody who reaches the console on this machine is its operator `demo`. An empty variable is the
    default.
    """
    if app is apps.serving:
        return {"OVERNIGHT_HOST": app.host, "OVERNIGHT_PORT": str(app.port)}
    if app is apps.network:
        config = replace(
            Config.from_environment(),
            port=app.port,
            serving_url=apps.serving.url,
            console_url=apps.console.url,
            folder=folder,
            refresh_minutes=int(environment["OVERNIGHT_REFRESH_MINUTES"]),
        )
        return config.to_environment()
    return {
        "OVERNIGHT_CONSOLE_HOST": app.host,
        "OVERNIGHT_CONSOLE_PORT": str(app.port),
        "OVERNIGHT_CONSOLE_LOCAL_OPERATOR": "demo",
        "OVERNIGHT_CONSOLE_READ_ONLY": "off",
        "OVERNIGHT_CONSOLE_SERVING_URL": apps.serving.url,
        "OVERNIGHT_CONSOLE_USERS": "",
        "OVERNIGHT_CONSOLE_PREFIX": "",
        "OVERNIGHT_CONSOLE_TRUST_PROXY": "",
    }


def _load_network(
    home: NetworkFolder, servers: Servers, engine: sa.Engine, options: UpOptions
) -> LoadedNetwork:
    """Load the network of the options unless it is loaded already, with the tables of its pages."""
    loaded = read_loaded_network(engine)
    source = name_source(options.network)
    any_source = options.network is None and home.name != SIMULATED
    if loaded is not None and (loaded.source == source or any_source):
        if _has_pages(engine):
            echo(f"==> Network already loaded ({loaded.source}): {loaded.size}")
            return loaded
        if any_source:
            raise DemoUsageError(
                f"an earlier release loaded the network {home.name!r}, without the tables of its pages; "
                f"nothing was changed. Load it again: make demo NETWORK={shlex.quote(loaded.source)} "
                f"NAME={shlex.quote(home.name)}"
            )
        echo(
            "==> An earlier release loaded this network, without the tables of its pages: it is loaded again"
        )
    home.check_source(loaded, source)
    title = "Simulating a network" if options.network is None else f"Loading {options.network}"
    with print_duration(title):
        command = (
            ["simulate", "--topic-taste", TOPIC_TASTE]
            if options.network is None
            else ["load", str(options.network.resolve())]
        )
        until = [] if options.keep_dates else ["--until", NOW]
        run_module("demo", [*command, *until], servers.environment())
    network = read_loaded_network(engine)
    if network is None:
        raise DemoError("the network was loaded but cannot be found")
    return network


def _warn_of_old_dates(home: NetworkFolder, engine: sa.Engine, network: LoadedNetwork) -> None:
    with engine.connect() as connection:
        newest = connection.scalar(NEWEST)
    age = datetime.now(UTC) - newest
    if age > MAX_AGE:
        load = "simulate" if network.source == SIMULATED else f"load {shlex.quote(network.source)}"
        echo(
            f"==> Warning: the newest interaction of this network is {age.days:,} days old; a like of today "
            "makes everything else look as old. To load it again, shifted to end now and without what people "
            f"did: python {home.command(load)} --until {NOW}"
        )


def _has_pages(engine: sa.Engine) -> bool:
    """Return whether the database has the tables of the network's app."""
    with engine.connect() as connection:
        return connection.scalar(sa.text("SELECT to_regclass('public.activity')")) is not None


def _needs_night(
    servers: Servers, client: redis.Redis, keys: Keys, network: LoadedNetwork, options: UpOptions
) -> bool:
    """Return whether a variant serves no run of this network; delete an older network's keys."""
    runs = [live_run_id(client, keys, variant) for variant in VARIANTS]
    oldest = f"{network.at:%Y%m%dT%H%M%SZ}"  # a run id begins with its time
    if all(run is not None and str(run) >= oldest for run in runs):
        unused = "; --limit-users is for the next night" if options.limit_users else ""
        echo(f"==> Night already run: {', '.join(map(str, runs))} are live{unused}")
        return False
    if any(run is not None and str(run) < oldest for run in runs):
        servers.valkey.delete_keys()
    return True
