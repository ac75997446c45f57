"""The conductor of a simulated experiment: servers of its own, the replay, the report, trials."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import numpy as np
import redis

from batch.experiment.metrics import BEFORE
from batch.experiment.outcomes import read_outcomes
from batch.experiment.page import page
from batch.experiment.period import find_split, period
from batch.experiment.record import record
from batch.experiment.recorded import history
from batch.experiment.report import report
from batch.experiment.told import told
from batch.layout import as_json
from batch.loading.source import snapshot
from contract.settings import Settings
from demo.postgres import engine_of
from demo.replay import Network, replay
from demo.servers import Servers, servers_in
from demo.stages import stoppable
from demo.trials import Trials, run_trials, true_effects
from demo.visits import Shown

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
    """
    servers = servers_in(folder / FOLDER)
    with (
        stoppable(),
        _started(servers),
        redis.Redis.from_url(servers.valkey.url(), decode_responses=True) as client,
    ):
        own = replace(
            settings,
            database_url=servers.postgres.url(),
            redis_url=servers.valkey.url(),
            model_dir=str(servers.folder / "models"),
        )
        shown = _replayed(servers, own, client, wanted.network)
        with snapshot(engine_of(own.database_url)) as connection:
            split = find_split(history(connection, own.key_prefix), None)
            counted = period(split, datetime.now(UTC), planned=timedelta(days=wanted.network.days))
            if wanted.aa or wanted.ab:
                before = read_outcomes(connection, counted, recorded=True).users.filter(like=BEFORE)
                tests, same = wanted.aa or wanted.ab, bool(wanted.aa)
                trials = run_trials(shown, before, counted, tests, wanted.network.seed, same)
                click.echo(json.dumps(asdict(trials), indent=2) if wanted.as_json else _trials_told(trials))
            else:
                _tell(record(report(connection, counted, recorded=True)), shown, wanted)


@contextmanager
def _started(servers: Servers) -> Iterator[None]:
    servers.start()
    try:
        yield
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


def _tell(found: dict[str, Any], shown: Shown, wanted: Wanted) -> None:
    """Print the report, and beside it what is true and what the report cannot know."""
    truth = true_effects(shown, (shown.in_control, shown.in_test))
    if wanted.html is not None:
        wanted.html.write_text(page(found))
    if wanted.as_json:
        click.echo(as_json(found | {"truth": truth}))
        return
    lines = []
    for each in found["metrics"]:
        value, interval = truth[each["metric"]], each["relative"]
        holds = "within" if interval["low"] <= value <= interval["high"] else "outside"
        lines.append(f"{each['title']}: {100 * value:+.2f} %, {holds} the interval")
    click.echo(told(found) + "\n\nThe truth, which only a simulation knows\n" + "\n".join(lines))


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
