"""The commands of `python -m demo`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import redis
from sqlalchemy.exc import DBAPIError

from batch.commands.options import Number
from contract.errors import EXIT_FAILED, OvernightError
from contract.keys import Keys
from contract.logs import configure_logging, redact
from contract.settings import Settings
from demo.child_processes import ROOT, Stopped
from demo.network import SIMULATED, loaded, note_loaded, source_of
from demo.networks import NetworkFolder, folder_in_use, folder_to_load, list_networks, stop_networks
from demo.postgres import engine_of
from demo.real_network import load, recognise
from demo.servers import Servers, servers_in
from demo.up import Wanted, up

F = TypeVar("F", bound=Callable[..., Any])
LAST_USED = "the one loaded or brought up last"

EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127

folder_option = click.option(
    "--dir",
    "folder",
    envvar="OVERNIGHT_DEMO_DIR",
    default=ROOT / ".demo",
    show_default=".demo in the checkout",
    show_envvar=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the servers of all networks keep their data.",
)


def name_option(text: str) -> Callable[[F], F]:
    """Return the option that names a network; `text` says which one it is without."""
    return click.option("--name", metavar="NAME", help=f"Name of the network; else {text}.")


@click.group()
@folder_option
@click.pass_context
def demo(context: click.Context, folder: Path) -> None:
    """Run Overnight on embedded servers: a Postgres and a Valkey that need no installing."""
    context.obj = folder


@demo.command("up")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to serve on, in place of OVERNIGHT_PORT.")
@click.option("--network", type=click.Path(path_type=Path), help="Folder of a real network; else simulated.")
@click.option(
    "--limit-users",
    type=click.IntRange(min=1),
    help="Users to score, if the night is yet to be run; else all, or 2,000 of a real network's over 50,000.",
)
@name_option("called as the folder of --network, or simulated")
@click.option("--once", is_flag=True, help="Make the requests, check the answers, stop.")
@click.pass_obj
def up_command(
    folder: Path,
    port: int | None,
    network: Path | None,
    limit_users: int | None,
    name: str | None,
    once: bool,
) -> None:
    """Start everything, load a network, run the night, serve it; Ctrl-C stops it all.

    What is already there is not made again. Networks live side by side, each
    under its name with servers, lists and models of its own.
    """
    settings = Settings.from_environment()
    if port is not None:
        settings = settings.replace(port=port)
    up(folder_to_load(folder, name, network), settings, Wanted(network, limit_users, once))


@demo.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@name_option(LAST_USED)
@click.pass_obj
def exec_command(folder: Path, command: tuple[str, ...], name: str | None) -> None:
    """Run COMMAND with the settings of a network's servers, which stay up until `stop`."""
    servers = servers_in(folder_in_use(folder, name).path)
    servers.start()
    environment = servers.environment()
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError:
        _fail(f"there is no command {command[0]!r}", EXIT_NOT_FOUND)
    except OSError as error:
        _fail(f"{command[0]!r} cannot be run: {error.strerror}", EXIT_NOT_EXECUTABLE)


@demo.command("networks")
@click.pass_obj
def networks_command(folder: Path) -> None:
    """List the networks that are there: size, when loaded, whether their servers run."""
    click.echo(list_networks(folder))


@demo.command("stop")
@name_option("all of them")
@click.pass_obj
def stop_command(folder: Path, name: str | None) -> None:
    """Stop `up` and the servers; the data stays."""
    click.echo("Stopped; the data stays." if stop_networks(folder, name) else "Nothing was running.")


@demo.command("simulate")
@click.option("--users", type=int, default=2000, show_default=True, help="How many users.")
@click.option("--posts", type=int, default=500, show_default=True, help="How many posts.")
@click.option("--interactions", type=int, default=100_000, show_default=True, help="Views and likes in all.")
@click.option("--seed", type=int, show_default="OVERNIGHT_SEED", help="Same seed, same network.")
@name_option("simulated")
@click.pass_obj
def simulate_command(
    folder: Path, users: int, posts: int, interactions: int, seed: int | None, name: str | None
) -> None:
    """Put a simulated network in place of the one of that name.

    Uses the database of DATABASE_URL if that is set, else the demo's own,
    starting its servers if need be; they stay up until `stop`.
    """
    from demo.simulate import simulate

    settings = Settings.from_environment()
    configure_logging(settings)
    home = folder_to_load(folder, name, None)
    url = _database_url(home)
    simulate(url, users, posts, interactions, settings.night.seed if seed is None else seed)
    _note_loaded(home, url, SIMULATED)


@demo.command("load")
@click.argument("network", type=click.Path(path_type=Path))
@name_option("called as the folder NETWORK")
@click.pass_obj
def load_command(folder: Path, network: Path, name: str | None) -> None:
    """Load the real network in the folder NETWORK beside those that are there.

    The folder holds users, posts and interactions, each as .parquet, .csv or
    .csv.gz, with the columns of the three views; or the files of the first
    network (demo/course_files.py). Uses the database of DATABASE_URL if that is set,
    and replaces the network there; else servers of the network's own, starting
    them if need be; they stay up until `stop`.
    """
    configure_logging(Settings.from_environment())
    recognise(network)
    home = folder_to_load(folder, name, network)
    url = _database_url(home)
    if not os.environ.get("DATABASE_URL"):
        home.check_source(loaded(engine_of(url)), source_of(network))
    load(url, network)
    _note_loaded(home, url, source_of(network))


@demo.command("oracle")
@name_option("simulated")
@click.pass_obj
def oracle_command(folder: Path, name: str | None) -> None:
    """Print the best HitRate@5 that anyone could reach on the simulated network, beside ours.

    Uses the database of DATABASE_URL if that is set, else the demo's own,
    starting its servers if need be; they stay up until `stop`.
    """
    from demo.oracle import report

    home = folder_in_use(folder, name or SIMULATED)
    url, keys = _database_url(home), Keys(Settings.from_environment().stores.key_prefix)
    redis_url = _redis_url(home)
    if redis_url is None:
        click.echo(report(url))
        return
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        click.echo(report(url, client, keys))


@demo.command("experiment", epilog="Example: python -m demo experiment --effect 0.05 --html experiment.html")
@click.option(
    "--effect",
    type=Number(-0.5, 1),
    default=0.05,
    show_default=True,
    help="True relative effect of test on likes per view.",
)
@click.option(
    "--users", type=click.IntRange(100, 100_000), default=3000, show_default=True, help="How many users."
)
@click.option(
    "--posts", type=click.IntRange(50, 10_000), default=300, show_default=True, help="How many posts."
)
@click.option("--days", type=click.IntRange(1, 60), default=7, show_default=True, help="How long it lasts.")
@click.option(
    "--seed", type=click.IntRange(min=0), show_default="OVERNIGHT_SEED", help="Same seed, same days."
)
@click.option(
    "--aa", type=click.IntRange(min=1), help="Run so many experiments without any effect, and count."
)
@click.option("--ab", type=click.IntRange(min=1), help="The same with the effect.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the report's page."
)
@click.pass_obj
def experiment_command(
    folder: Path,
    effect: float,
    users: int,
    posts: int,
    days: int,
    seed: int | None,
    aa: int | None,
    ab: int | None,
    as_json: bool,
    html: Path | None,
) -> None:
    """Live through an A/B test of a simulated network, with a known truth, and report on it.

    Each day users look at what serving answers and like by their hidden
    tastes; each night both models learn from it. On servers of its own, which
    end with it; the same network is not replayed again.
    """
    from demo.experiment import Wanted as WantedExperiment
    from demo.experiment import experiment
    from demo.replay import Network

    if (aa or ab) and (html or (aa and ab)):
        raise click.UsageError("Give one of --aa, --ab and --html: trials have no page.")
    settings = Settings.from_environment()
    configure_logging(settings)
    network = Network(users, posts, days, settings.night.seed if seed is None else seed, effect)
    experiment(folder, settings, WantedExperiment(network, aa or 0, ab or 0, as_json, html))


def main() -> NoReturn:
    """Run a command; every foreseen error is one line on stderr and an exit code."""
    try:
        demo(prog_name="python -m demo")
    except OvernightError as error:
        _fail(str(error), error.exit_code)
    except Stopped as stopped:
        _fail("stopped before everything was up", stopped.exit_code)
    except (DBAPIError, redis.RedisError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        secrets = Settings.from_environment().secrets()
        _fail(f"{type(error).__name__}: {redact(reason, secrets)}", EXIT_FAILED)
    sys.exit()


def _database_url(home: NetworkFolder) -> str:
    if os.environ.get("DATABASE_URL"):
        return Settings.from_environment().stores.database_url
    servers: Servers = servers_in(home.path)
    servers.start()
    return servers.postgres.url()


def _redis_url(home: NetworkFolder) -> str | None:
    """Return where the lists are; None if another database was given, and no Redis."""
    if os.environ.get("DATABASE_URL"):
        return Settings.from_environment().stores.redis_url if os.environ.get("REDIS_URL") else None
    return servers_in(home.path).valkey.url()


def _note_loaded(home: NetworkFolder, database_url: str, source: str) -> None:
    network = note_loaded(engine_of(database_url), source)
    night = "python -m batch run"
    if not os.environ.get("DATABASE_URL"):
        home.note(network)
        night = f"python -m demo exec{home.option} -- {night}"
    click.echo(f"{network.size}; lists are of this network once a night was run ({night})")


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)
