"""The conductor of a simulated experiment: servers of its own, the replay, the report, trials."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import redis

from batch.experiment.history import read_changes
from batch.experiment.outcomes import read_outcomes
from batch.experiment.period import find_split_period, limit_period
from batch.experiment.render import check_writable, render_text, write_page
from batch.experiment.report import read_report
from batch.experiment.statistics import BEFORE_PREFIX
from batch.formatting import as_json
from batch.postgres import snapshot
from contract.errors import LockedError
from contract.settings import Settings
from demo.child_processes import stoppable
from demo.postgres import engine_of
from demo.processes import lock
from demo.replay import Network, Shown, replay
from demo.servers import Servers, servers_in, up_lock
from demo.trials import Trials, run_trials, true_effects

FOLDER = "experiment"
REPLAYED = "replay.npz"


@dataclass(frozen=True)
class Wanted:
    """What was asked for: `aa` and `ab` are how many trials of a kind, 0 for the report on the replay."""

    network: Network
    aa: int
    ab: int
    as_json: bool
    html: Path | None


def experiment(folder: Path, settings: Settings, wanted: Wanted) -> None:
    """Replay the network unless that was done before, then report on its experiment or run trials on it.

    The servers are the experiment's own, in a folder below the demo's, and
    stopped at the end; the demo's network stays as it is.

    Raises
    ------
    LockedError
        If another one uses the folder.
    OvernightError
        If the page cannot be written where it is wanted.
    """
    if wanted.html is not None:
        check_writable(wanted.html)
    servers = servers_in(folder / FOLDER)
    try:
        with lock(up_lock(servers.folder), wait=False), stoppable(), _started(servers) as own:
            _conduct(servers, settings.replace(**own), wanted)
    except BlockingIOError:
        raise LockedError(f"another `python -m demo experiment` uses {servers.folder}; wait for it") from None


def _conduct(servers: Servers, settings: Settings, wanted: Wanted) -> None:
    with redis.Redis.from_url(settings.stores.redis_url, decode_responses=True) as client:
        shown = _replayed(servers, settings, client, wanted.network)
    with snapshot(engine_of(settings.stores.database_url)) as connection:
        split = find_split_period(read_changes(connection, settings.stores.key_prefix), None)
        counted = limit_period(split, datetime.now(UTC))
        if not (wanted.aa or wanted.ab):
            tell(read_report(connection, counted, exposures_recorded=True).as_dict(), shown, wanted)
            return
        before = read_outcomes(connection, counted, exposures_recorded=True).users.filter(like=BEFORE_PREFIX)
    trials = run_trials(
        shown, before, counted, wanted.aa or wanted.ab, wanted.network.seed, same=bool(wanted.aa)
    )
    click.echo(json.dumps(asdict(trials), indent=2) if wanted.as_json else _trials_told(trials))


@contextmanager
def _started(servers: Servers) -> Iterator[dict[str, str]]:
    """Start the servers, and stop them at the end; yields the settings that name them."""
    servers.start()
    try:
        yield {
            "database_url": servers.postgres.url(),
            "redis_url": servers.valkey.url(),
            "model_dir": str(servers.folder / "models"),
        }
    finally:
        servers.stop()


def _replayed(servers: Servers, settings: Settings, client: redis.Redis, wanted: Network) -> Shown:
    """Return the true probabilities of the wanted replay; it is lived through if another one is there."""
    file, key = servers.folder / REPLAYED, json.dumps(asdict(wanted))
    if file.is_file():
        with np.load(file) as kept:
            if str(kept["wanted"]) == key:
                click.echo("==> Replayed already", err=True)
                return Shown(**{each.name: kept[each.name] for each in fields(Shown)})
    file.unlink(missing_ok=True)
    servers.valkey.empty()
    shown = replay(settings, client, wanted)
    unfinished = file.with_name(f"unfinished-{REPLAYED}")
    np.savez_compressed(
        unfinished, wanted=key, **{each.name: getattr(shown, each.name) for each in fields(Shown)}
    )
    unfinished.replace(file)
    return shown


def tell(found: dict[str, Any], shown: Shown, wanted: Wanted) -> None:
    """Print the report, and beside it what is true and what the report cannot know."""
    truth = true_effects(shown, (shown.in_control, shown.in_test))
    if wanted.html is not None:
        write_page(wanted.html, found)
    if wanted.as_json:
        click.echo(as_json(found | {"truth": truth}))
        return
    lines = []
    for each in found["metrics"]:
        value, interval = truth[each["metric"]], each["relative"]
        holds = "within" if interval["low"] <= value <= interval["high"] else "outside"
        lines.append(f"{each['title']}: {100 * value:+.2f} %, {holds} the interval")
    click.echo(render_text(found) + "\n\nThe truth, which only a simulation knows\n" + "\n".join(lines))


def _trials_told(trials: Trials) -> str:
    lines = [
        f"{trials.tests} experiments, {trials.called} called; chance alone calls {trials.called_low} to "
        f"{trials.called_high}",
        f"the interval covers the truth in {100 * trials.coverage:.1f} %",
    ]
    for name, figures in trials.metrics.items():
        found = {what: f"{100 * value:.1f} %" for what, value in figures.items()}
        lines.append(
            f"{name}: truth {100 * trials.truth[name]:.1f} %, estimated {found['mean_relative']} on average, "
            f"covered in {found['covered']}, significant in {found['significant']}"
        )
    return "\n".join(lines)
