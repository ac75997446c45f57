"""What waits for an operator, worst first, and one sentence that says whether all is well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from batch.experiment.split import StoredSplit, describe_split
from batch.formatting import format_count
from batch.runs.ledger import State
from batch.runs.lock import NIGHT
from batch.signals import STOPPED
from console.content.overview import LedgerOverview, Overview, RedisOverview
from contract.experiment import CONTROL, TEST, VARIANTS
from scheduler.schedule import CronSchedule, find_missed_night

SECONDS_PER_HOUR = 3600
MAX_WAITING = 0.5
"""Share of the stream's greatest length from which on waiting exposures are a concern."""


FRESH = timedelta(hours=1)
"""Problems that the doctor found before are no longer urgent: what home reads now is newer."""


@dataclass(frozen=True)
class Concern:
    """What should be looked at.

    Attributes
    ----------
    endpoint
        The page to look at it; None if no page tells more.
    urgent
        Whether it waits for an operator; if not, it is worth knowing.
    """

    sentence: str
    endpoint: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    urgent: bool = True


def describe(overview: Overview, concerns: list[Concern]) -> str:
    """Return one sentence, or two, that say whether all is well."""
    redis, ledger = overview.redis.value, overview.ledger.value
    running = _describe_night(overview)
    if ledger and redis and not redis.live and not any(ledger.states.values()):
        return running or "No night has run yet: serving has nothing to answer with. Start the first night."
    if urgent := [concern for concern in concerns if concern.urgent]:
        first = urgent[0].sentence
        count = f"{len(urgent)} things wait for you, first: " if len(urgent) > 1 else ""
        return " ".join(filter(None, (f"{count}{first}", running)))
    well = "" if concerns else "; nothing waits for you"
    return " ".join(filter(None, (f"{_describe_live(overview)}{well}.", running)))


def _describe_night(overview: Overview) -> str:
    ledger = overview.ledger.value
    holder = ledger.holders.get(NIGHT) if ledger else None
    if ledger is None or (holder is None and ledger.night_started is None):
        return ""
    started = ledger.night_started or (holder.since if holder else None)
    since = f" since {format_clock(started, overview.now)}" if started else ""
    return f"A night is running{since}."


def _describe_live(overview: Overview) -> str:
    redis = overview.redis.value
    if redis is None or not redis.live:
        return "No variant is live"
    since_when = overview.ledger.value.live_since if overview.ledger.value else {}
    times = [since_when[run_id] for run_id in redis.live.values() if run_id in since_when]
    since = f" since {format_clock(max(times), overview.now)}" if times else ""
    if set(redis.live) == set(VARIANTS):
        return f"Both variants are live{since}"
    return f"{', '.join(redis.live)} is live{since}, the other variant has no users"


def format_clock(time: datetime, now: datetime) -> str:
    """Return the time of day, with the date unless it is the date of `now`; in the zone of `now`."""
    local = time.astimezone(now.tzinfo)
    return f"{local:%H:%M} UTC" if local.date() == now.date() else f"{local:%Y-%m-%d %H:%M} UTC"


def find_concerns(overview: Overview) -> list[Concern]:
    """Return what waits for an operator, worst first, and then what is worth knowing."""
    ledger, redis = overview.ledger, overview.redis
    found = [Concern(_sentence(reading.error)) for reading in (ledger, redis) if reading.error]
    if redis.value:
        found += _check_live(redis.value, ledger.value, overview)
    if ledger.value:
        found += _check_runs(ledger.value, redis.value)
        found += _check_late(ledger.value, overview)
    if redis.value and ledger.value:
        found += _check_split(redis.value, ledger.value)
    if redis.value:
        found += _check_exposures(redis.value, overview)
    found += _check_serving(overview)
    found += _check_doctor(overview)
    if not found and overview.serving.value:
        found += [Concern(_sentence(f"serving warns: {each}")) for each in overview.serving.value.warnings]
    return sorted(found, key=lambda concern: not concern.urgent)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _shares(redis: RedisOverview, ledger: LedgerOverview | None, overview: Overview) -> dict[str, int]:
    """Return variant -> percentage of the users."""
    if redis.split.experiment:
        test = redis.split.experiment.percent_test
    elif ledger and ledger.split:
        test = ledger.split.experiment.percent_test
    else:
        test = overview.settings.experiment.percent_test
    return {CONTROL: 100 - test, TEST: test}


def _check_live(redis: RedisOverview, ledger: LedgerOverview | None, overview: Overview) -> Iterator[Concern]:
    """Check that each variant with users has a live run, the one of the ledger, and that it is not old."""
    late = ledger is not None and find_late(ledger, overview) is not None
    for variant, share in _shares(redis, ledger, overview).items():
        run_id, recorded = redis.live.get(variant), ledger.live.get(variant) if ledger else None
        if run_id is None and recorded:
            yield Concern(
                f"Redis has no live run of {variant}, the ledger has {recorded}: was Redis emptied? "
                f"{_describe_served(recorded, overview)}Run a night.",
                "runs.run",
                {"run_id": recorded},
            )
        elif run_id is None and share:
            yield Concern(f"{variant} has no live run, and {share} % of the users: run a night.")
        elif run_id and ledger and recorded != run_id:
            yield Concern(
                f"Redis serves {run_id} for {variant}, the ledger has {recorded or 'none'}: "
                "the next night records what is served.",
                "runs.run",
                {"run_id": run_id},
            )
        if run_id is None:
            continue
        manifest = redis.manifests.get(variant)
        age = manifest.age(overview.now) if manifest else None
        if manifest is None:
            yield Concern(
                f"The manifest of {run_id} in Redis is missing or broken: run a night.", "doctor.doctor"
            )
        elif age and not late and age > overview.settings.serving.stale_after_hours * SECONDS_PER_HOUR:
            yield Concern(
                f"The lists of {variant} are {age // SECONDS_PER_HOUR} hours old: was a night missed?",
                "runs.run",
                {"run_id": run_id},
            )


def _describe_served(run_id: str, overview: Overview) -> str:
    """Return what serving does with a run that Redis lacks; nothing if it does not say."""
    serving = overview.serving
    if serving.error or serving.value is None:
        return ""
    if run_id in serving.value.runs.values():
        return "Serving still has that run, and answers with its popular posts where a list is missing. "
    return "Serving does not have it either. "


def _check_runs(ledger: LedgerOverview, redis: RedisOverview | None) -> Iterator[Concern]:
    """Check that no run died, and that the newest of each variant was neither refused nor failed.

    One that was stopped is no concern: somebody meant it.
    """
    for run_id in ledger.unbuilt:
        yield Concern(
            f"{run_id} is recorded as being built, but no night runs: it died. "
            "What is live is not affected; the next night closes it.",
            "runs.run",
            {"run_id": run_id},
        )
    for variant, states in ledger.states.items():
        ended = [run for run in states if run.state not in (State.BUILDING, State.BUILT)]
        if not ended or ended[0].state not in (State.REFUSED, State.FAILED):
            continue
        run, live = ended[0], redis.live.get(variant) if redis else None
        stopped = run.state == State.FAILED and (run.reason or "").startswith(STOPPED)
        what = "was refused by the gate" if run.state == State.REFUSED else "failed"
        reason = f": {run.reason.rstrip('.')}" if run.reason else ""
        done = "was stopped before it ended" if stopped else f"{what}{reason}"
        stays = f"; {live} is still live" if live and live == ledger.live.get(variant) else ""
        yield Concern(
            _sentence(f"the last run of {variant} {done}{stays}"), "runs.run", {"run_id": run.run_id},
            urgent=not stopped,
        )  # fmt: skip


def find_late(ledger: LedgerOverview, overview: Overview) -> datetime | None:
    """Return when the first night was due since which no run has gone live; None if none is late."""
    if ledger.latest_live is None:
        return None
    settings = overview.settings.schedule
    late_after = timedelta(minutes=settings.late_after_minutes)
    return find_missed_night(make_schedule(overview), ledger.latest_live, overview.now - late_after)


def make_schedule(overview: Overview) -> CronSchedule:
    """Return when nights are due."""
    return CronSchedule(overview.settings.schedule.nightly_cron, overview.settings.schedule.timezone)


def _check_late(ledger: LedgerOverview, overview: Overview) -> Iterator[Concern]:
    due = find_late(ledger, overview)
    if due is not None and ledger.latest_live is not None:
        yield Concern(
            f"A night is late: one was due at {format_clock(due, overview.now)}, and no run has gone live "
            f"since {format_clock(ledger.latest_live, overview.now)}.",
            "jobs.jobs",
        )


def _check_split(redis: RedisOverview, ledger: LedgerOverview) -> Iterator[Concern]:
    if ledger.split is None or redis.split.experiment == ledger.split.experiment:
        return
    recorded = describe_split(ledger.split.experiment)
    if redis.split == StoredSplit(None):
        differs = f"Redis holds no split, Postgres has {recorded}"
    else:
        differs = f"The split in Redis is not the one in Postgres ({recorded}), but {redis.split.describe()}"
    yield Concern(f"{differs}: the next refresh writes it back.", "experiment.experiment")


def _check_exposures(redis: RedisOverview, overview: Overview) -> Iterator[Concern]:
    longest = overview.settings.experiment.exposures_batches
    if redis.waiting > MAX_WAITING * longest:
        yield Concern(
            f"{redis.waiting:,} batches of exposures wait in Redis, above {longest:,} the oldest are lost: "
            "start a refresh, which moves them to Postgres.",
            "jobs.jobs",
        )


def _check_serving(overview: Overview) -> Iterator[Concern]:
    serving, redis = overview.serving, overview.redis
    if serving.error:
        yield Concern(_sentence(serving.error))
    elif (
        serving.value
        and redis.value
        and not redis.error
        and redis.value.live
        and dict(serving.value.runs) != dict(redis.value.live)
    ):
        served = ", ".join(serving.value.runs.values()) or "none"
        yield Concern(f"Serving still serves other runs than Redis names: {served}.", "doctor.doctor")


def _check_doctor(overview: Overview) -> Iterator[Concern]:
    """Tell what the doctor found last: it waits only while nothing can have changed it."""
    record = overview.doctor.value
    findings = record.output.get("findings", []) if record and isinstance(record.output, dict) else []
    failed = [finding for finding in findings if finding.get("status") == "fail"]
    if record and failed:
        at, ledger = record.ended_at or record.started_at, overview.ledger.value
        went_live = max(ledger.live_since.values(), default=None) if ledger else None
        first = ", first" if len(failed) > 1 else ""
        yield Concern(
            f"The doctor found {format_count(len(failed), 'problem')} at {format_clock(at, overview.now)}"
            f"{first}: {failed[0]['check']}: {str(failed[0]['found']).rstrip('.')}. Run it again.",
            "doctor.doctor",
            urgent=overview.now - at < FRESH and (went_live is None or went_live < at),
        )
