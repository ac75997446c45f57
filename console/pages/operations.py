"""Actions on nights, jobs and live runs: start, stop, roll back, examine, try the webhook."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from flask import url_for

from batch.alerts.alert import host_of
from batch.context import Stores
from batch.formatting import format_count
from batch.publishing import go_live
from batch.redis_client import live_run_ids
from batch.reports.files import format_time
from batch.runs import ledger, lock
from batch.runs.ledger import runs
from batch.runs.tables import has_table
from console import job_records
from console.actions import Action, Arguments, Field, ImpossibleError, Outcome, Preview, register
from console.context import Console, Visitor, now
from console.jobs import DOCTOR, NIGHT, REFRESH, WEBHOOK, JobRecord
from contract.errors import LockedError
from contract.experiment import VARIANTS
from contract.run_id import parse_run_id
from contract.settings import Settings
from scheduler.schedule import CronSchedule

ALL = "all"

RESTORES = "Where Redis lacks a block of a post, or the split, it gets them again from Postgres."

SERVED = "what is served, until a new run goes live"


BUTTONS = (
    ("start-night", "Start a night"),
    ("refresh", "Refresh the lists"),
    ("doctor", "Run the doctor"),
    ("webhook", "Try the webhook"),
)


def list_buttons(settings: Settings) -> list[tuple[str, str]]:
    """Return name and title of the actions that start a job: the webhook's only if there is one."""
    return [each for each in BUTTONS if each[0] != "webhook" or settings.schedule.webhook_url]


def _describe_time(time: datetime | None) -> str:
    return "an unknown time" if time is None else format_time(time.isoformat())


def _check_none_runs(console: Console, kind: str) -> None:
    """Refuse a second job of a kind, whatever its arguments and whichever console runs the first.

    Raises
    ------
    ImpossibleError
        One runs.
    """
    known = [*console.jobs.held(), *job_records.list_running(console.stores)]
    job = next((job for job in known if job.kind == kind and job.running), None)
    if job is not None:
        raise ImpossibleError(
            f"a {job.title} runs already: {job.actor} started it at {_describe_time(job.started_at)}; "
            "wait for its end, or stop it on its page"
        )


def _start(console: Console, visitor: Visitor, kind: str, arguments: dict[str, Any], reason: str) -> Outcome:
    """Start a job, or say that it runs already."""
    before = datetime.now(UTC)
    job = console.jobs.start(kind, arguments, visitor.name, reason)
    url = url_for("jobs.job", job_id=job.job_id)
    if job.started_at < before:
        since = _describe_time(job.started_at)
        return Outcome(f"It runs already: {job.actor} started it at {since}. Nothing more was started.", url)
    return Outcome(f"The job “{job.title}” was started: {job.command}.", url)


def _find_holder(stores: Stores, purpose: str) -> str | None:
    """Return who holds a lock; None if nobody does."""
    with stores.engine.connect() as connection:
        holder = lock.find_holder(connection, stores.keys.prefix, purpose)
        return None if holder is None else holder.describe()


def _describe_lock(stores: Stores, purpose: str) -> list[str]:
    holder = _find_holder(stores, purpose)
    if holder is None:
        return []
    return [
        f"Another {lock.COMMAND[purpose]} holds the lock: {holder}. Until it ends, nothing can be started."
    ]


def _check_lock(stores: Stores, purpose: str) -> None:
    holder = _find_holder(stores, purpose)
    if holder is not None:
        raise LockedError(f"another {lock.COMMAND[purpose]} holds the lock: {holder}; wait for it or stop it")


def preview_night(console: Console, arguments: Arguments) -> Preview:
    """Say which runs are built, who holds the lock, when the next night is, and how long the last took."""
    variant = arguments.get("variant", "")
    chosen = VARIANTS if variant == ALL else (variant,)
    field = Field("variant", "Runs of", variant if variant in VARIANTS else ALL, (ALL, *VARIANTS))
    back = url_for("jobs.jobs")
    _check_none_runs(console, NIGHT)
    if not set(chosen) <= set(VARIANTS):
        return Preview("Start a night", [], "Continue", fields=[field], ask_first=True, back=back)
    stores, schedule = console.stores, console.settings.schedule
    next_night = CronSchedule(schedule.nightly_cron, schedule.timezone).next_after(now())
    names = " and ".join(chosen)
    return Preview(
        title=f"Start a night of {names}",
        changes=[
            f"A new run of {names} is built for all users of the views: loaded, trained, scored and checked.",
            "Each run that the gate accepts goes live at once; one that it refuses is kept and not served.",
            "Runs that are no longer kept are removed.",
        ],
        stays=[SERVED, "the scheduled night"],
        notes=[
            *_describe_lock(stores, lock.NIGHT),
            *_describe_last_runs(stores, chosen),
            f"The next scheduled night is {next_night:%Y-%m-%d %H:%M %Z}, if a scheduler runs.",
        ],
        button="Start the night",
        back=back,
    )


def _describe_last_runs(stores: Stores, variants: tuple[str, ...]) -> list[str]:
    query = sa.select(runs.c.variant, runs.c.started_at, runs.c.finished_at).where(
        runs.c.key_prefix == stores.keys.prefix, runs.c.finished_at.is_not(None)
    )
    lines = []
    with stores.engine.connect() as connection:
        if not has_table(connection, runs):
            return []
        for variant in variants:
            newest = query.where(runs.c.variant == variant).order_by(runs.c.started_at.desc()).limit(1)
            last = connection.execute(newest).first()
            if last is not None:
                minutes = (last.finished_at - last.started_at).total_seconds() / 60
                lines.append(
                    f"The last run of {variant} began at {_describe_time(last.started_at)} "
                    f"and took {minutes:.1f} minutes."
                )
    return lines


def start_night(
    console: Console, stores: Stores, visitor: Visitor, arguments: Arguments, reason: str
) -> Outcome:
    """Start a night as a job."""
    _check_lock(stores, lock.NIGHT)
    return _start(console, visitor, NIGHT, {"variant": arguments["variant"]}, reason)


def preview_refresh(console: Console, arguments: Arguments) -> Preview:
    """Say which runs are refreshed, and when they last were."""
    _check_none_runs(console, REFRESH)
    stores = console.stores
    live = list(live_run_ids(stores.redis, stores.keys).values())
    changes, notes = [RESTORES], []
    for run_id in live:
        manifest = go_live.read_manifest(stores.redis, stores.keys, run_id)
        if manifest is not None and manifest.refreshed_at is not None:
            notes.append(
                f"{run_id} was last refreshed at {format_time(manifest.refreshed_at)}; "
                f"lists changed since the night: {manifest.refreshed_users or 0:,}."
            )
    if live:
        changes += [
            f"Users who acted since their list was made, and new users, get lists in {' and '.join(live)}.",
            "How many they are is known when it has run: the job's log says it.",
        ]
    else:
        changes.append("No run is live, so no list can be refreshed, and the job will end with that error.")
        notes.append("Start a night to have lists.")
    return Preview(
        title="Refresh the live lists",
        changes=changes,
        stays=["lists of all other users", "the models", "which run is live"] if live else ["the models"],
        notes=[*_describe_lock(stores, lock.REFRESH), *notes],
        button="Refresh now",
        back=url_for("jobs.jobs"),
    )


def start_refresh(
    console: Console, stores: Stores, visitor: Visitor, arguments: Arguments, reason: str
) -> Outcome:
    """Start a refresh as a job."""
    _check_lock(stores, lock.REFRESH)
    return _start(console, visitor, REFRESH, {}, reason)


def _find_job(console: Console, arguments: Arguments) -> JobRecord:
    """Return the running job that is to be stopped."""
    job = console.jobs.find(arguments.get("job", ""))
    if job is None:
        raise ImpossibleError("there is no such job, or it is no longer kept; the page of jobs lists them")
    if not job.running:
        raise ImpossibleError(f"the job “{job.title}” has ended already: {job.meaning}")
    if not console.jobs.holds(job.job_id):
        raise ImpossibleError(
            f"the job “{job.title}” of {job.actor} runs on {job.host} in another console, so this one cannot "
            "stop it; stop it there"
        )
    return job


def preview_stop(console: Console, arguments: Arguments) -> Preview:
    """Say which job is stopped, whose it is, and what becomes of a run."""
    job = _find_job(console, arguments)
    changes = [
        f"The process of “{job.title}”, which {job.actor} started at {_describe_time(job.started_at)}, is "
        "asked to end (SIGTERM), and killed if it does not."
    ]
    if job.kind == NIGHT:
        changes.append("The run that it builds is recorded as failed, and its keys and files are removed.")
    return Preview(
        title=f"Stop the job “{job.title}”",
        changes=changes,
        stays=["what is served"],
        button="Stop it",
        back=url_for("jobs.job", job_id=job.job_id),
    )


def stop_job(
    console: Console, stores: Stores, visitor: Visitor, arguments: Arguments, reason: str
) -> Outcome:
    """Begin to stop a job."""
    job = _find_job(console, arguments)
    console.jobs.stop(job.job_id, visitor.name)
    return Outcome(
        f"The job “{job.title}” was asked to end. Its page shows when it has.",
        url_for("jobs.job", job_id=job.job_id),
    )


def preview_doctor(console: Console, arguments: Arguments) -> Preview:
    """Say what the doctor reads."""
    return Preview(
        title="Run the doctor",
        changes=[
            "Nothing is changed: Postgres, Redis, the live runs and their models are examined.",
            "It reads the names of all keys of Redis (SCAN) and counts rows of the views: seconds of work.",
        ],
        stays=["serving, nights and refreshes"],
        button="Run the doctor",
        back=url_for("doctor.doctor"),
    )


def run_doctor(
    console: Console, stores: Stores, visitor: Visitor, arguments: Arguments, reason: str
) -> Outcome:
    """Start the doctor as a job."""
    return _start(console, visitor, DOCTOR, {}, reason)


def preview_webhook(console: Console, arguments: Arguments) -> Preview:
    """Say which host gets the alert; the rest of the address is a secret."""
    url = console.settings.schedule.webhook_url
    if not url:
        raise ImpossibleError(
            "OVERNIGHT_WEBHOOK_URL is empty, so there is no webhook to try; set it and restart the console"
        )
    return Preview(
        title="Try the webhook",
        changes=[f"One alert of the event “test” is sent to {host_of(url)}."],
        stays=["everything else"],
        button="Send the test alert",
        back=url_for("jobs.jobs"),
    )


def try_webhook(
    console: Console, stores: Stores, visitor: Visitor, arguments: Arguments, reason: str
) -> Outcome:
    """Send a test alert as a job."""
    return _start(console, visitor, WEBHOOK, {}, reason)


def _find_variant(arguments: Arguments) -> tuple[str, str]:
    """Return the run to be rolled back, and its variant."""
    run_id = arguments.get("run", "")
    try:
        return run_id, parse_run_id(run_id)[1]
    except ValueError as error:
        raise ImpossibleError(f"{error}; roll back from the page of the live run") from None


def preview_rollback(console: Console, arguments: Arguments) -> Preview:
    """Say which run is served instead, and what becomes of the live one."""
    run_id, variant = _find_variant(arguments)
    stores = console.stores
    plan = go_live.plan_rollback(stores, variant, bad_run_id=run_id)
    with stores.engine.connect() as connection:
        since, until = ledger.live_period(connection, plan.good)
    manifest = go_live.read_manifest(stores.redis, stores.keys, plan.good)
    lists = "" if manifest is None else f", with lists of {format_count(manifest.users, 'user')}"
    building = [
        f"{building} is being built and may go live after this: stop it if it would be as bad."
        for building in plan.building
    ]
    return Preview(
        title=f"Roll {variant} back",
        changes=[
            f"{variant} serves {plan.good} again, which was live from {_describe_time(since)} "
            f"to {_describe_time(until)}{lists}.",
            f"{plan.bad} is taken out of service at once and is never chosen again.",
            *building,
        ],
        stays=["the other variant", "the split", "blocked posts"],
        button=f"Serve {plan.good} again",
        back=url_for("runs.run", run_id=run_id),
    )


def roll_back(
    console: Console, stores: Stores, visitor: Visitor, arguments: Arguments, reason: str
) -> Outcome:
    """Roll back, if the run that was confirmed is still the live one."""
    run_id, variant = _find_variant(arguments)
    done = go_live.roll_back(stores, variant, reason=reason, bad_run_id=run_id)
    return Outcome(
        f"{variant} serves {done.good} again; {done.bad} is rolled back and never chosen again.",
        url_for("runs.run", run_id=done.good),
    )


for action in (
    Action("start-night", preview_night, start_night, ["variant"]),
    Action("refresh", preview_refresh, start_refresh),
    Action("stop-job", preview_stop, stop_job, ["job"]),
    Action("doctor", preview_doctor, run_doctor),
    Action("webhook", preview_webhook, try_webhook),
    Action("roll-back", preview_rollback, roll_back, ["run"]),
):
    register(action)
