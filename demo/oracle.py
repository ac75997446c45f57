"""The best HitRate@5 that anyone could reach on a simulated network, beside what the runs reached.

Two oracles know every true like probability. One also knows at which hour
each post will be seen; the other takes an average hour, as a list made the
night before must. demo/night_lists.py judges the lists that are live.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import redis
import sqlalchemy as sa

from contract.keys import Keys
from contract.settings import Settings
from demo.judge import Verdict, judge
from demo.network import NetworkError, transaction
from demo.night_lists import Worth, worth_of_lists
from demo.tastes import draw_tastes

SLICE_ROWS = 5_000_000
"""About how many interactions belong to the users judged at a time; it bounds the memory."""

LATEST_RUNS = """
    SELECT DISTINCT ON (variant) run_id, state, manifest -> 'metrics' AS metrics FROM recs.runs
    WHERE manifest #>> '{metrics,holdout,from}' IS NOT NULL
    ORDER BY variant, (state = 'live') DESC, started_at DESC
"""
LAST_VIEWS = """
    SELECT percentile_disc(:share) WITHIN GROUP (ORDER BY happened_at), max(happened_at)
    FROM recs.interactions WHERE action = 'view'
"""


@dataclass(frozen=True)
class Window:
    """The views with start < happened_at <= until, and the runs judged by them."""

    start: datetime
    until: datetime
    runs: list[sa.Row[Any]]


def report(database_url: str, client: redis.Redis | None = None, keys: Keys | None = None) -> str:
    """Return a table for each holdout window: oracles, ceiling, and the runs judged on it.

    That is the live run of each variant, or its latest where none is live. Given
    a Redis with lists, a last table tells what these are worth.

    Raises
    ------
    NetworkError
        If the network in the database is not a simulated one.
    """
    with transaction(database_url) as connection:
        if connection.scalar(sa.text("SELECT to_regclass('public.simulation')")) is None:
            raise NetworkError(
                "the network in this database is not a simulated one, so nobody knows its true like "
                "probabilities; run `python -m demo simulate` first"
            )
        made = connection.execute(sa.text("SELECT seed, users, posts, interactions FROM simulation")).one()
        tastes = draw_tastes(made.seed, made.users, made.posts)
        title = (
            f"Simulated network: {made.users:,} users, {made.posts:,} posts, "
            f"{made.interactions:,} interactions, seed {made.seed}"
        )
        slices = -(-made.interactions // SLICE_ROWS)
        tables = [
            _table(window, judge(connection, tastes, window.start, window.until, slices))
            for window in holdout_windows(connection)
        ]
        worth = None if client is None else worth_of_lists(connection, tastes, client, keys or Keys())
        tables += [] if worth is None else [_lists(worth)]
    return "\n\n".join([title, *tables])


def holdout_windows(connection: sa.Connection) -> list[Window]:
    """Return the holdout windows of the runs, or the last views where no run has one."""
    windows: dict[tuple[str, str], list[sa.Row[Any]]] = {}
    if connection.scalar(sa.text("SELECT to_regclass('recs.runs')")) is not None:
        for run in connection.execute(sa.text(LATEST_RUNS)):
            holdout = run.metrics["holdout"]
            windows.setdefault((holdout["from"], holdout["until"]), []).append(run)
    if windows:
        return [
            Window(datetime.fromisoformat(start), datetime.fromisoformat(until), runs)
            for (start, until), runs in windows.items()
        ]
    share = 1 - Settings.holdout_fraction
    start, until = connection.execute(sa.text(LAST_VIEWS), {"share": share}).one()
    return [Window(start, until, [])]


def _table(window: Window, verdict: Verdict | None) -> str:
    title = f"Holdout {_utc(window.start)} to {_utc(window.until)} UTC: "
    if verdict is None:
        return title + "nobody viewed anything"
    users = verdict.users
    lines = [title + f"{users:,} users, {verdict.pairs:,} (user, post) pairs viewed"]
    if not window.runs:
        share = f"{Settings.holdout_fraction:.0%}"
        lines.append(f"No run has been evaluated yet, so these are the last {share} of the views.")
    lines += [_note(run, users) for run in window.runs if run.metrics["holdout"]["users"] != users]
    lines += ["", f"{'HitRate@5, viewed-only':<40}{'reached':>9}{'expected':>10}"]
    for run in window.runs[:1]:
        lines += [_line(name, run.metrics[name]["hitrate_at_5"]) for name in ("random", "popularity")]
    for run in window.runs:
        lines.append(_line(f"{run.run_id} ({run.state})", run.metrics["model"]["hitrate_at_5"]))
    best = verdict.night_before[0]
    error = math.sqrt(best * (1 - best) / users)
    return "\n".join(
        [
            *lines,
            _line("best for a list made the night before", *verdict.night_before),
            _line("best that knows the hour of each view", *verdict.knowing_the_hour),
            _line("ceiling: users who liked anything", verdict.ceiling),
            _line("standard error of these figures", error),
        ]
    )


def _lists(worth: Worth) -> str:
    ranked = {"random": worth.random, "popularity": worth.popularity} | worth.runs
    lines = [f"{name:<40}{value:>9.4f}{value / worth.best:>10.1%}" for name, value in ranked.items()]
    return "\n".join(
        [
            f"First five of the lists that are live: {worth.users:,} users, all posts not liked so far",
            "",
            f"{'HitRate@5, full catalogue':<40}{'expected':>9}{'of best':>10}",
            *lines,
            f"{'best that knows every probability':<40}{worth.best:>9.4f}",
        ]
    )


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _note(run: sa.Row[Any], users: int) -> str:
    return f"{run.run_id} was judged on {run.metrics['holdout']['users']:,} users, the oracles on {users:,}."


def _line(label: str, reached: float | None, expected: float | None = None) -> str:
    figures = [f"{'-' if reached is None else format(reached, '.4f'):>9}"]
    if expected is not None:
        figures.append(f"{expected:>10.4f}")
    return f"{label:<40}{''.join(figures)}"
