"""Commands of `python -m demo`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import redis
from sqlalchemy.exc import DBAPIError

from batch.commands.options import Number, json_option
from batch.formatting import as_json as format_json
from batch.formatting import echo
from contract.errors import EXIT_FAILED, OvernightError
from contract.ids import IdKind
from contract.keys import Keys
from contract.logs import configure_logging, redact
from contract.settings import Settings
from demo.dates import count_shift_days, parse_until
from demo.network_app.config import Config
from demo.network_folders import (
    FOLDER_OF_ALL,
    SIMULATED,
    NetworkFolder,
    choose_folder,
    find_folder,
    format_networks,
    name_source,
    read_loaded_network,
    record_loaded_network,
    stop_networks,
)
from demo.postgres import make_engine
from demo.processes import DemoError, DemoUsageError, Stopped
from demo.real_network import detect_format, load_network
from demo.servers import are_running, prepare_servers
from demo.up import UpOptions, up

F = TypeVar("F", bound=Callable[..., Any])
LAST_USED = "the one loaded or brought up last"

EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127

folder_option = click.option(
    "--dir",
    "folder",
    envvar="OVERNIGHT_DEMO_DIR",
    default=FOLDER_OF_ALL,
    show_default=".demo in the checkout",
    show_envvar=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder in which the servers of all networks keep their data.",
)


ids_option = click.option(
    "--ids",
    type=click.Choice([str(kind) for kind in IdKind]),
    default=str(IdKind.NUMBER),
    show_default=True,
    help="Kind of the ids: whole numbers, uuids of users and posts of text, or all of text.",
)


class _Time(click.ParamType[Any]):
    """`now`, or a date or time in ISO 8601."""

    name = "TIME"

    def convert(
        self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        try:
            return value if isinstance(value, datetime) else parse_until(value)
        except ValueError:
            self.fail(f"{value!r} is neither 'now' nor a date such as 2026-01-31", param, ctx)


until_option = click.option(
    "--until",
    type=_Time(),
    help="Shift all times by whole days, so that the last interaction is less than a day before this time: "
    "'now', or a date. Without it they stay as they are.",
)


def name_option(default: str) -> Callable[[F], F]:
    """Return the option that names a network; `default` describes the network without it."""
    return click.option("--name", metavar="NAME", help=f"Name of the network; else {default}.")


@click.group()
@folder_option
@click.pass_context
def demo(context: click.Context, folder: Path) -> None:
    """Run Overnight on embedded servers: a Postgres and a Valkey that need no installation."""
    context.obj = folder


@demo.command("up")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to serve on, instead of OVERNIGHT_PORT.")
@click.option(
    "--console-port",
    type=click.IntRange(1, 65535),
    help="Port of the console, instead of OVERNIGHT_CONSOLE_PORT.",
)
@click.option(
    "--app-port",
    type=click.IntRange(1, 65535),
    help="Port of the network's pages, instead of NETWORK_APP_PORT.",
)
@click.option("--network", type=click.Path(path_type=Path), help="Folder of a real network; else simulated.")
@click.option(
    "--limit-users",
    type=click.IntRange(min=1),
    help="Users to score in a night; all others, and people who register, then get popular posts.",
)
@name_option("the name of the folder of --network, or simulated")
@click.option(
    "--keep-dates", is_flag=True, help="Load the network as it is; else shifted by whole days to end now."
)
@click.option("--once", is_flag=True, help="Send example requests, check the answers, stop.")
@click.pass_obj
def up_command(
    folder: Path,
    *,
    port: int | None,
    console_port: int | None,
    app_port: int | None,
    network: Path | None,
    limit_users: int | None,
    name: str | None,
    keep_dates: bool,
    once: bool,
) -> None:
    """Start the servers, load a network, run the night, serve the lists, show the network and the console.

    The scheduler refreshes lists every minute, and runs the night at its time.
    Ctrl-C stops everything.

    Steps that are done already are skipped. Networks exist side by side, each
    with its own name, servers, lists and models.
    """
    settings = Settings.from_environment()
    if port is not None:
        settings = settings.replace(port=port)
    if console_port is not None:
        settings = settings.replace(console_port=console_port)
    app_port = Config.from_environment().port if app_port is None else app_port
    options = UpOptions(network, limit_users, app_port, keep_dates=keep_dates, once=once)
    up(choose_folder(folder, name, network), settings, options)


@demo.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@name_option(LAST_USED)
@click.pass_obj
def exec_command(folder: Path, command: tuple[str, ...], name: str | None) -> None:
    """Run COMMAND with the settings of a network's servers, which keep running until `stop`."""
    servers = prepare_servers(find_folder(folder, name).path)
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
    """List the networks: size, when loaded, whether their servers run."""
    echo(format_networks(folder))


@demo.command("stop")
@name_option("all networks")
@click.pass_obj
def stop_command(folder: Path, name: str | None) -> None:
    """Stop `up` and the servers; the data stays."""
    echo("Stopped; the data stays." if stop_networks(folder, name) else "Nothing was running.")


@demo.command("simulate")
@click.option("--users", type=int, default=2000, show_default=True, help="Number of users.")
@click.option("--posts", type=int, default=500, show_default=True, help="Number of posts.")
@click.option(
    "--interactions", type=int, default=300_000, show_default=True, help="Number of views and likes in total."
)
@click.option("--seed", type=int, show_default="OVERNIGHT_SEED", help="The same seed gives an equal network.")
@click.option(
    "--topic-taste",
    type=Number(0, 5),
    default=0.0,
    show_default=True,
    help="How much each user's own taste for each topic matters: its standard deviation, in logits.",
)
@until_option
@ids_option
@name_option("simulated")
@click.pass_obj
def simulate_command(
    folder: Path,
    *,
    users: int,
    posts: int,
    interactions: int,
    seed: int | None,
    topic_taste: float,
    until: datetime | None,
    ids: str,
    name: str | None,
) -> None:
    """Replace the network of that name by a simulated one.

    Uses the database of DATABASE_URL if that is set, else the demo's own. The
    demo's servers are started if they do not run, and keep running until `stop`.
    """
    from demo.population import END
    from demo.simulate import simulate

    settings = Settings.from_environment()
    configure_logging(settings)
    home = choose_folder(folder, name, None)
    url = _database_url(home)
    seed = settings.night.seed if seed is None else seed
    shift_days = count_shift_days(datetime.fromtimestamp(END, UTC), until)
    simulate(
        url,
        users,
        posts,
        interactions,
        seed,
        ids=IdKind(ids),
        shift_days=shift_days,
        topic_taste=topic_taste,
    )
    _record_loaded(home, url, SIMULATED, shift_days)


@demo.command("load")
@click.argument("network", type=click.Path(path_type=Path))
@until_option
@name_option("the name of the folder NETWORK")
@click.pass_obj
def load_command(folder: Path, network: Path, *, until: datetime | None, name: str | None) -> None:
    """Load the real network in the folder NETWORK; other networks stay.

    The folder holds users, posts and interactions, each as .parquet, .csv or
    .csv.gz, with the columns of the three views; or the files of the first
    network (demo/course_files.py). Uses the database of DATABASE_URL if that is
    set, and replaces the network there; else the network's own servers. These
    are started if they do not run, and keep running until `stop`.
    """
    configure_logging(Settings.from_environment())
    detect_format(network)
    home = choose_folder(folder, name, network)
    url = _database_url(home)
    if not os.environ.get("DATABASE_URL"):
        home.check_source(read_loaded_network(make_engine(url)), name_source(network))
    shift_days = load_network(url, network, until)
    _record_loaded(home, url, name_source(network), shift_days)


@demo.command("oracle")
@name_option("simulated")
@click.pass_obj
def oracle_command(folder: Path, name: str | None) -> None:
    """Print the best possible HitRate@5 on the simulated network, and ours.

    Uses the database of DATABASE_URL if that is set, else the demo's own. The
    demo's servers are started if they do not run, and keep running until `stop`.
    """
    from demo.oracle import build_report

    home = find_folder(folder, name or SIMULATED)
    url, keys = _database_url(home), Keys(Settings.from_environment().stores.key_prefix)
    redis_url = _redis_url(home)
    if redis_url is None:
        echo(build_report(url))
        return
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        echo(build_report(url, client, keys))


@demo.command("experiment", epilog="Example: python -m demo experiment --effect 0.05 --html experiment.html")
@click.option(
    "--effect",
    type=Number(-0.5, 1),
    default=0.05,
    show_default=True,
    help="True relative effect of test on likes per view.",
)
@click.option(
    "--users", type=click.IntRange(100, 100_000), default=3000, show_default=True, help="Number of users."
)
@click.option(
    "--posts", type=click.IntRange(50, 10_000), default=300, show_default=True, help="Number of posts."
)
@click.option(
    "--days", type=click.IntRange(1, 60), default=7, show_default=True, help="Duration of the experiment."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    show_default="OVERNIGHT_SEED",
    help="The same seed gives equal days.",
)
@ids_option
@click.option(
    "--aa",
    type=click.IntRange(min=1),
    help="Run this many experiments without an effect; count winners.",
)
@click.option(
    "--ab",
    type=click.IntRange(min=1),
    help="Run this many with the effect; count winners.",
)
@json_option
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the report's page."
)
@click.pass_obj
def experiment_command(
    folder: Path,
    *,
    effect: float,
    users: int,
    posts: int,
    days: int,
    seed: int | None,
    ids: str,
    aa: int | None,
    ab: int | None,
    as_json: bool,
    html: Path | None,
) -> None:
    """Simulate an A/B test with a known true effect, and report on it.

    Each day users view what serving answers and like by their true like
    probabilities; each night both models learn from that. The experiment has
    its own servers and stops them at the end. The days of the same parameters
    are simulated once and kept.
    """
    from demo.experiment import ExperimentOptions, run_experiment
    from demo.replay import ReplayParameters

    if (aa or ab) and (html or (aa and ab)):
        raise click.UsageError("Give one of --aa, --ab and --html: trials have no page.")
    settings = Settings.from_environment()
    configure_logging(settings)
    seed = settings.night.seed if seed is None else seed
    parameters = ReplayParameters(users, posts, days, seed, effect, IdKind(ids))
    options = ExperimentOptions(parameters, aa_trials=aa or 0, ab_trials=ab or 0, as_json=as_json, html=html)
    run_experiment(folder, settings, options)


@demo.command("dask", epilog="Example: python -m demo dask --users 20000 --posts 1000")
@click.option(
    "--users",
    type=click.IntRange(8_192, 1_000_000),
    default=20_000,
    show_default=True,
    help="Number of users.",
)
@click.option(
    "--posts", type=click.IntRange(200, 100_000), default=1_000, show_default=True, help="Number of posts."
)
@click.option(
    "--interactions",
    type=click.IntRange(min=10_000),
    default=300_000,
    show_default=True,
    help="Number of views and likes in total.",
)
@click.pass_obj
def dask_command(folder: Path, *, users: int, posts: int, interactions: int) -> None:
    """Run a night on a scheduler and two workers of Dask, and the same night on threads.

    Prints the checksums of both side by side, compares all lists, and checks what
    serving answers. It has its own network and servers, on free ports, and stops
    them at the end. Needs the packages of requirements-dask.txt.
    """
    from demo.dask_night import NetworkSize, run_dask_demo

    configure_logging(Settings.from_environment())
    run_dask_demo(folder, NetworkSize(users, posts, interactions))


@demo.command("crowd", epilog="Example: python -m demo crowd --people 200 --minutes 10 --effect 0.3")
@click.option(
    "--people",
    "size",
    type=click.IntRange(1, 2_000),
    default=200,
    show_default=True,
    help="Number of people; at most all of the network without an account.",
)
@click.option(
    "--minutes", type=Number(0.1, 120), default=10, show_default=True, help="How long new visits begin."
)
@click.option(
    "--effect",
    type=Number(-0.5, 1),
    default=0,
    show_default=True,
    help="How much more people in test like what they see, relative.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    show_default="OVERNIGHT_SEED",
    help="The same seed gives the same people and visits.",
)
@click.option("--url", help="Address of the app on this machine; else that of the running demo.")
@name_option(LAST_USED)
@json_option
@click.pass_obj
def crowd_command(
    folder: Path,
    *,
    size: int,
    minutes: float,
    effect: float,
    seed: int | None,
    url: str | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Let simulated people use the app of the running demo, and report what they did.

    They look at their feeds, like by preferences that the models do not know,
    open posts and join communities, over HTTP and on this machine only. The
    report compares likes per view in both variants with what was to be
    expected, and the true effect with what the A/B report says. Ctrl-C ends it
    with its report.
    """
    from demo.crowd.report import render_text
    from demo.crowd.run import NOT_RUNNING, CrowdOptions, find_app_url, run_crowd

    settings = Settings.from_environment()
    configure_logging(settings)
    servers = prepare_servers(find_folder(folder, name).path)
    if not are_running(servers.folder):
        raise DemoUsageError(NOT_RUNNING)
    url = find_app_url(servers.folder) if url is None else url
    settings = settings.replace(database_url=servers.postgres.url(), redis_url=servers.valkey.url())
    seed = settings.night.seed if seed is None else seed
    report = run_crowd(settings, CrowdOptions(url, size, 60 * minutes, seed, effect)).as_dict()
    echo(format_json(report) if as_json else render_text(report))
    if not report["visits"] and report["requests"]["not_answered"]:
        raise DemoError(f"no visit succeeded; see the reasons above and the app's log in {servers.folder}")


def main() -> NoReturn:
    """Run a command; print a known error as one line on stderr and exit with its code."""
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
    servers = prepare_servers(home.path)
    servers.start()
    return servers.postgres.url()


def _redis_url(home: NetworkFolder) -> str | None:
    """Return the URL of the Redis with the lists; None if DATABASE_URL is set and REDIS_URL is not."""
    if os.environ.get("DATABASE_URL"):
        return Settings.from_environment().stores.redis_url if os.environ.get("REDIS_URL") else None
    return prepare_servers(home.path).valkey.url()


def _record_loaded(home: NetworkFolder, database_url: str, source: str, shift_days: int) -> None:
    network = record_loaded_network(make_engine(database_url), source, shift_days)
    night = "python -m batch run"
    if not os.environ.get("DATABASE_URL"):
        home.record_use(network)
        night = f"python {home.command('exec')} -- {night}"
    if shift_days:
        echo(f"all times are shifted by {shift_days:,} days (--until)")
    echo(f"{network.size}; its lists come with the next night ({night})")


def _fail(message: str, code: int) -> NoReturn:
    echo(f"error: {message}", err=True)
    sys.exit(code)
