"""Experiments with a known true effect: replay one, report on it, and repeat it in trials.

A trial is an experiment on the replayed network with a new salt, which assigns
the users again by serving's own rule, and with new likes, drawn from the true
probabilities. Users, visits, lists and everything before the experiment stay
the same. In an A/A trial test's users get control's lists and probabilities,
in an A/B trial test's, so the true effect is known exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import redis
from scipy import stats
from tqdm import tqdm

from batch.experiment.history import read_changes
from batch.experiment.outcomes import FIRST_POSTS, read_outcomes
from batch.experiment.period import Period, find_split_period, limit_period
from batch.experiment.render import check_writable, render_text, write_page
from batch.experiment.report import analyse, read_report
from batch.experiment.statistics import (
    BEFORE_PREFIX,
    CONFIDENCE,
    DAYS,
    HITRATE,
    HITS,
    IN_TEST,
    LIKE_RATE,
    LIKES,
    LIKES_PER_USER,
    SIGNIFICANCE,
    VIEWS,
    Difference,
)
from batch.formatting import as_json, echo
from batch.postgres import snapshot
from contract.errors import LockedError
from contract.experiment import TEST, Experiment
from contract.ids import Id
from contract.settings import Settings
from demo.population import Floats, Ints
from demo.postgres import make_engine
from demo.processes import hold_lock, raise_on_signal
from demo.replay import Impressions, ReplayParameters, replay
from demo.servers import Servers, prepare_servers, up_lock

FOLDER = "experiment"
REPLAY_FILE = "replay.npz"


@dataclass(frozen=True)
class ExperimentOptions:
    """Options of `experiment`; without trials it prints the report on the replay."""

    parameters: ReplayParameters
    aa_trials: int = 0
    ab_trials: int = 0
    as_json: bool = False
    html: Path | None = None


def run_experiment(folder: Path, settings: Settings, options: ExperimentOptions) -> None:
    """Replay the experiment unless that is done already; then report on it or run trials.

    The experiment has its own servers, in a subfolder of the demo's folder, and
    stops them at the end. The demo's network does not change.

    Raises
    ------
    LockedError
        If another experiment uses the folder.
    OvernightError
        If the page cannot be written.
    """
    if options.html is not None:
        check_writable(options.html)
    servers = prepare_servers(folder / FOLDER)
    try:
        with hold_lock(up_lock(servers.folder), wait=False), raise_on_signal(), _started(servers) as urls:
            _replay_and_report(servers, settings.replace(**urls), options)
    except BlockingIOError:
        raise LockedError(f"another `python -m demo experiment` uses {servers.folder}; wait for it") from None


def _replay_and_report(servers: Servers, settings: Settings, options: ExperimentOptions) -> None:
    with redis.Redis.from_url(settings.stores.redis_url, decode_responses=True) as client:
        impressions = _load_or_replay(servers, settings, client, options.parameters)
    with snapshot(make_engine(settings.stores.database_url)) as connection:
        split = find_split_period(read_changes(connection, settings.stores.key_prefix), None)
        counted = limit_period(split, datetime.now(UTC))
        if not (options.aa_trials or options.ab_trials):
            result = read_report(connection, counted, exposures_recorded=True).as_dict()
            print_report(result, impressions, options)
            return
        before = read_outcomes(connection, counted, exposures_recorded=True).users.filter(like=BEFORE_PREFIX)
    trials = run_trials(
        impressions,
        before,
        counted,
        user_ids=options.parameters.make_ids().users,
        tests=options.aa_trials or options.ab_trials,
        seed=options.parameters.seed,
        same=bool(options.aa_trials),
    )
    echo(json.dumps(asdict(trials), indent=2) if options.as_json else format_trials(trials))


@contextmanager
def _started(servers: Servers) -> Iterator[dict[str, str]]:
    """Start the servers and stop them at the end; yield the settings that point to them."""
    servers.start()
    try:
        yield {
            "database_url": servers.postgres.url(),
            "redis_url": servers.valkey.url(),
            "model_dir": str(servers.folder / "models"),
        }
    finally:
        servers.stop()


def _load_or_replay(
    servers: Servers, settings: Settings, client: redis.Redis, parameters: ReplayParameters
) -> Impressions:
    """Return the impressions of a replay: from its file if that has these parameters, else replay it."""
    file, key = servers.folder / REPLAY_FILE, json.dumps(asdict(parameters))
    names = [field.name for field in fields(Impressions)]
    if file.is_file():
        with np.load(file) as arrays:
            if str(arrays["wanted"]) == key:
                echo("==> Replayed already", err=True)
                return Impressions(**{name: arrays[name] for name in names})
    file.unlink(missing_ok=True)
    servers.valkey.delete_keys()
    impressions = replay(settings, client, parameters)
    unfinished = file.with_name(f"unfinished-{REPLAY_FILE}")
    np.savez_compressed(unfinished, wanted=key, **{name: getattr(impressions, name) for name in names})
    unfinished.replace(file)
    return impressions


def print_report(result: dict[str, Any], impressions: Impressions, options: ExperimentOptions) -> None:
    """Print the report and the true effects, which the report does not know; write the page if asked."""
    truth = true_effects(impressions, (impressions.in_control, impressions.in_test))
    if options.html is not None:
        write_page(options.html, result)
    if options.as_json:
        echo(as_json(result | {"truth": truth}))
        return
    lines = []
    for metric in result["metrics"]:
        value, interval = truth[metric["metric"]], metric["relative"]
        position = "within" if interval["low"] <= value <= interval["high"] else "outside"
        lines.append(f"{metric['title']}: {100 * value:+.2f} %, {position} the interval")
    echo(render_text(result) + "\n\nTrue effects, known only in a simulation\n" + "\n".join(lines))


@dataclass(frozen=True)
class Trials:
    """Results of trials; the field names are those of the JSON output.

    Attributes
    ----------
    called
        Number of trials in which the report named a winner.
    called_low, called_high
        95 % interval of that number if there is no effect, from the binomial distribution.
    coverage
        Share of the trials whose 95 % interval of the relative difference in
        likes per view contains the true value.
    truth
        True relative difference by metric.
    metrics
        By metric: share `significant` at 5 %, share that `covered` the true value,
        mean of the estimated relative differences.
    """

    tests: int
    called: int
    coverage: float
    called_low: int
    called_high: int
    truth: dict[str, float]
    metrics: dict[str, dict[str, float]]


def run_trials(
    impressions: Impressions,
    before: pd.DataFrame,
    period: Period,
    *,
    user_ids: Sequence[Id],
    tests: int,
    seed: int,
    same: bool,
) -> Trials:
    """Run trials, evaluate each with the report's own functions, and count the results.

    Parameters
    ----------
    before
        One row per user (index `user_id`) with the outcomes before the experiment: the
        columns `before_...` that `batch.experiment.statistics` names.
    user_ids
        Id of each user by row.
    tests
        Number of trials.
    same
        True for A/A trials, False for A/B trials.
    """
    control = impressions.in_control
    probabilities = (control, control if same else impressions.in_test)
    truth = true_effects(impressions, probabilities)
    users, user_index = np.unique(impressions.users, return_inverse=True)
    ids = [user_ids[user] for user in users]
    called, differences = 0, []
    # disable=None: a bar on a terminal, nothing elsewhere.
    for number in tqdm(range(tests), desc="A/A" if same else "A/B", unit="test", disable=None):
        experiment = Experiment("trial", f"{seed}/{number}", period.split.experiment.percent_test)
        in_test = np.array([experiment.variant_of(user) == TEST for user in ids])
        rng = np.random.default_rng([seed, 7, number])
        random = rng.random(user_index.size)
        liked = random < np.where(in_test[user_index], probabilities[1], probabilities[0])
        outcomes = (
            _sum_outcomes(impressions, user_index, liked)
            .assign(**{IN_TEST: in_test})
            .set_index(pd.Index(ids))
        )
        split = replace(period.split, experiment=experiment)
        analysis = analyse(outcomes.join(before), replace(period, split=split))
        called += analysis.verdict.winner is not None
        differences.append({difference.metric.name: difference for difference in analysis.differences})
    low, high = stats.binom.interval(CONFIDENCE, tests, SIGNIFICANCE)
    metrics = {
        name: _summarise([of_trial[name] for of_trial in differences], value) for name, value in truth.items()
    }
    return Trials(
        tests=tests,
        called=called,
        coverage=metrics[LIKE_RATE.name]["covered"],
        called_low=int(low),
        called_high=int(high),
        truth=truth,
        metrics=metrics,
    )


def _summarise(differences: list[Difference], truth: float) -> dict[str, float]:
    relative = [difference.relative for difference in differences if difference.relative is not None]
    return {
        "significant": float(np.mean([difference.p_value < SIGNIFICANCE for difference in differences])),
        "covered": float(np.mean([interval.low <= truth <= interval.high for interval in relative])),
        "mean_relative": float(np.mean([interval.value for interval in relative])),
    }


def true_effects(impressions: Impressions, probabilities: tuple[Floats, Floats]) -> dict[str, float]:
    """Return the true relative difference of each metric: all users in test against all in control.

    Parameters
    ----------
    probabilities
        Like probabilities of the impressions, under control and under test.
    """
    likes = [float(of_variant.sum()) for of_variant in probabilities]
    in_first = impressions.ranks < FIRST_POSTS
    visit_starts = np.flatnonzero(impressions.ranks == 0)
    misses = [
        np.multiply.reduceat(np.where(in_first, 1 - of_variant, 1.0), visit_starts)
        for of_variant in probabilities
    ]
    hits = [float((1 - of_variant).sum()) for of_variant in misses]
    rate = likes[1] / likes[0] - 1
    return {LIKE_RATE.name: rate, HITRATE.name: hits[1] / hits[0] - 1, LIKES_PER_USER.name: rate}


def _sum_outcomes(impressions: Impressions, user_index: Ints, liked: np.ndarray) -> pd.DataFrame:
    """Sum the outcomes of each user; a user has at most one visit a day, so visits are days."""
    users = int(user_index.max()) + 1
    visit_starts = np.flatnonzero(impressions.ranks == 0)
    hit = np.logical_or.reduceat(liked & (impressions.ranks < FIRST_POSTS), visit_starts)
    visitors = user_index[visit_starts]
    sums = {
        VIEWS: np.bincount(user_index, minlength=users),
        LIKES: np.bincount(user_index, liked, users).astype(np.int64),
        DAYS: np.bincount(visitors, minlength=users),
        HITS: np.bincount(visitors, hit, users).astype(np.int64),
    }
    return pd.DataFrame(sums)


def format_trials(trials: Trials) -> str:
    """Format the results of trials as text."""
    lines = [
        f"{trials.tests} experiments, {trials.called} with a winner; without an effect "
        f"{trials.called_low} to {trials.called_high} have one by chance",
        f"the interval contains the true value in {100 * trials.coverage:.1f} %",
    ]
    for name, shares in trials.metrics.items():
        percent = {key: f"{100 * value:.1f} %" for key, value in shares.items()}
        lines.append(
            f"{name}: true value {100 * trials.truth[name]:.1f} %, mean estimate {percent['mean_relative']}, "
            f"interval contains it in {percent['covered']}, significant in {percent['significant']}"
        )
    return "\n".join(lines)
