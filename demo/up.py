"""The conductor: servers, a network, a night, serving; then the requests, or a wait for Ctrl-C."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click
import redis
import sqlalchemy as sa

from contract.errors import LockedError
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.settings import Settings
from demo.checks import Truth, check_answers, choose_examples, print_examples
from demo.child_processes import Stopped, ignore_signals, run_stage, stoppable, timed
from demo.gunicorn import Web
from demo.network import SIMULATED, Loaded, loaded, source_of
from demo.networks import NetworkFolder
from demo.postgres import engine_of
from demo.processes import DemoError, holder, lock
from demo.real_network import recognise
from demo.servers import Servers, servers_in, up_lock

REAL_LIMIT_USERS = 2000
MAX_USERS_SCORED = 50_000
"""A real network with more users gets lists for the first REAL_LIMIT_USERS, so that a demo stays short."""

COUNT_USERS = sa.text("SELECT count(*) FROM recs.users")


@dataclass(frozen=True)
class Wanted:
    """What `up` was asked for.

    Attributes
    ----------
    network
        Folder of a real network's files. None takes what is loaded if the user chose
        its name, and simulates a network otherwise.
    limit_users
        How many users to score; None scores all, or 2,000 of a real network with more than 50,000.
    once
        Make the requests and end, instead of waiting for Ctrl-C.
    """

    network: Path | None
    limit_users: int | None
    once: bool


def up(home: NetworkFolder, settings: Settings, wanted: Wanted) -> None:
    """Bring everything up, stay or try it out, and stop all of it.

    Raises
    ------
    LockedError
        If another `up` uses the folder.
    DemoUsageError
        If the port is taken, or another folder's network has the name.
    FormatError
        If the network's folder is not there or in no known format.
    DemoError
        If something does not come up, or an answer is wrong.
    Stopped
        If a signal came before everything was up.
    """
    if wanted.network is not None:
        recognise(wanted.network)
    servers = servers_in(home.path)
    web = Web(servers.folder, settings.serving.host, settings.serving.port)
    try:
        with lock(up_lock(servers.folder), wait=False), stoppable():
            web.stop()  # one that a killed `up` left
            web.check_port()
            try:
                _conduct(home, servers, web, settings, wanted)
            finally:
                _stop(servers, web)
    except BlockingIOError:
        process = holder(up_lock(servers.folder))
        raise LockedError(
            f"another `python -m demo up` (process {process.pid if process else 'unknown'}) uses "
            f"{servers.folder}; stop it with Ctrl-C or `python -m demo stop`"
        ) from None


def _stop(servers: Servers, web: Web) -> None:
    ignore_signals()
    try:
        web.stop()
    finally:
        servers.stop()
        with suppress(OSError):  # the terminal may be gone, or whoever read our output
            click.echo("==> Everything is stopped; the data stays")


def _conduct(home: NetworkFolder, servers: Servers, web: Web, settings: Settings, wanted: Wanted) -> None:
    with timed("Starting Postgres and Valkey"):
        servers.start()
    engine = engine_of(servers.postgres.url())
    keys = Keys(settings.stores.key_prefix)
    network = _load(home, servers, engine, wanted)
    home.note(network)
    with redis.Redis.from_url(servers.valkey.url(), decode_responses=True) as client:
        _run_night(servers, client, keys, network, wanted)
        with timed(f"Starting serving on {web.address}"):
            web.start(servers.environment())
        examples = choose_examples(engine, client, keys)
        if wanted.once:
            check_answers(examples, Truth(engine, client, keys), web.address)
            return
    print_examples(examples, web.address, home.option)
    with suppress(Stopped):
        web.wait()
        raise DemoError(f"serving has ended by itself; see {web.log}")


def _load(home: NetworkFolder, servers: Servers, engine: sa.Engine, wanted: Wanted) -> Loaded:
    """Load the wanted network unless it is there."""
    there = loaded(engine)
    source = source_of(wanted.network)
    if there is not None and (there.source == source or (wanted.network is None and home.name != SIMULATED)):
        click.echo(f"==> Network already loaded ({there.source}): {there.size}")
        return there
    home.check_source(there, source)
    what = "Simulating a network" if wanted.network is None else f"Loading {wanted.network}"
    with timed(what):
        stage = ["simulate"] if wanted.network is None else ["load", str(wanted.network.resolve())]
        run_stage("demo", stage, servers.environment())
    network = loaded(engine)
    if network is None:
        raise DemoError("the network was loaded but cannot be found")
    return network


def _limit(engine: sa.Engine, network: Loaded) -> int | None:
    """Return how many users to score if the user did not say; None scores all."""
    with engine.connect() as connection:
        users = connection.scalar(COUNT_USERS) or 0
    return REAL_LIMIT_USERS if network.source != SIMULATED and users > MAX_USERS_SCORED else None


def _run_night(servers: Servers, client: redis.Redis, keys: Keys, network: Loaded, wanted: Wanted) -> None:
    """Run the night unless every variant serves a run of this network; an older network's keys go."""
    runs = [client.get(keys.live(variant)) for variant in VARIANTS]
    oldest = f"{network.at:%Y%m%dT%H%M%SZ}"  # a run's id begins with its time
    if all(run is not None and str(run) >= oldest for run in runs):
        unused = "; --limit-users is for the next night" if wanted.limit_users else ""
        click.echo(f"==> Night already run: {', '.join(map(str, runs))} are live{unused}")
        return
    if any(run is not None and str(run) < oldest for run in runs):
        servers.valkey.empty()
    limit = wanted.limit_users or _limit(engine_of(servers.postgres.url()), network)
    arguments = ["run", "--variant", "all"]
    arguments += [] if limit is None else ["--limit-users", str(limit)]
    with timed(f"Running the night (python -m batch {' '.join(arguments)})"):
        run_stage("batch", arguments, servers.environment())
