"""Cron expressions have the meaning they have in cron; clock changes neither skip nor repeat a night."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.schedule import CronSchedule
from tests.support.scheduler import SATURDAY_NOON


@pytest.mark.parametrize(
    ("expression", "due"),
    [
        ("0 3 * * *", "2026-11-22 03:00"),
        ("0 3 * * 0", "2026-11-22 03:00"),  # a Sunday
        ("0 3 * * 7", "2026-11-22 03:00"),
        ("0 3 * * SUN", "2026-11-22 03:00"),
        ("0 3 * * 1", "2026-11-23 03:00"),
        ("0 3 * * mon-fri", "2026-11-23 03:00"),
        ("0 3 * * 2-4", "2026-11-24 03:00"),
        ("0 3 * * 5-7", "2026-11-22 03:00"),
        ("0 3 * * */3", "2026-11-22 03:00"),  # Sunday, Wednesday, Saturday
        ("0 13 * * 6", "2026-11-21 13:00"),
        ("5 11 * * 3,4", "2026-11-25 11:05"),
        ("30 */7 * * *", "2026-11-21 14:30"),
        ("10-50/20 * * * *", "2026-11-21 12:10"),
        ("50/5 * * * *", "2026-11-21 12:50"),
        ("0 0 1 jan *", "2027-01-01 00:00"),
        ("0 0 1 mar-may,dec *", "2026-12-01 00:00"),
        ("0 0 29 2 *", "2028-02-29 00:00"),
        ("0 0 31 * *", "2026-12-31 00:00"),
    ],
)
def test_a_cron_expression_is_due_when_cron_says(expression: str, due: str) -> None:
    found = CronSchedule(expression, "UTC").next_after(SATURDAY_NOON)
    assert found == datetime.fromisoformat(f"{due}+00:00")


def test_either_the_day_of_the_month_or_the_weekday_suffices() -> None:
    schedule = CronSchedule("0 3 13 * fri", "UTC")
    assert schedule.next_after(datetime(2026, 11, 30, tzinfo=UTC)).day == 4  # a Friday
    assert schedule.next_after(datetime(2026, 12, 11, 12, tzinfo=UTC)).day == 13  # a Sunday


def test_if_a_day_field_begins_with_an_asterisk_both_day_fields_must_match() -> None:
    schedule = CronSchedule("0 3 */2 * mon", "UTC")
    assert schedule.next_after(datetime(2026, 11, 24, tzinfo=UTC)).day == 7  # the 30th is a Monday, but even


small_sets = st.sets(st.integers(0, 23), min_size=1, max_size=3)


@given(
    minutes=small_sets,
    hours=small_sets,
    days=st.none() | st.sets(st.integers(1, 28), min_size=1, max_size=3),
    weekdays=st.none() | st.sets(st.integers(0, 6), min_size=1, max_size=3),
    start=st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)),
)
def test_the_next_due_time_is_the_one_a_search_day_by_day_finds(
    minutes: set[int], hours: set[int], days: set[int] | None, weekdays: set[int] | None, start: datetime
) -> None:
    def matches(day: datetime) -> bool:
        by_day = days is not None and day.day in days
        by_weekday = weekdays is not None and day.isoweekday() % 7 in weekdays
        return by_day or by_weekday or (days is None and weekdays is None)

    def search() -> datetime:
        midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
        while True:
            times = [midnight.replace(hour=h, minute=m) for h in sorted(hours) for m in sorted(minutes)]
            later = [time for time in times if time > start]
            if matches(midnight) and later:
                return later[0]
            midnight += timedelta(days=1)

    fields = [
        "*" if field is None else ",".join(map(str, field)) for field in (minutes, hours, days, weekdays)
    ]
    expression = f"{fields[0]} {fields[1]} {fields[2]} * {fields[3]}"
    found = CronSchedule(expression, "UTC").next_after(start.replace(tzinfo=UTC))
    assert found == search().replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "start", "due_in_utc"),
    [
        # In spring 02:00 to 03:00 is skipped: due an hour later.
        ("30 2 * * *", "2026-03-28T12:00", ["2026-03-29T01:30", "2026-03-30T00:30"]),
        ("30 2 * * *", "2026-03-29T01:10", ["2026-03-29T01:30", "2026-03-30T00:30"]),
        # In autumn 02:00 to 03:00 occurs twice: due the first time only.
        ("30 2 * * *", "2026-10-24T12:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
        ("0 3 * * *", "2026-10-24T12:00", ["2026-10-25T02:00", "2026-10-26T02:00"]),
    ],
)
def test_a_night_runs_once_when_the_clock_changes(expression: str, start: str, due_in_utc: list[str]) -> None:
    schedule = CronSchedule(expression, "Europe/Berlin")
    moment = datetime.fromisoformat(start).replace(tzinfo=UTC)
    for expected in due_in_utc:
        # APScheduler passes the due time that has just run.
        moment = schedule.get_next_fire_time(moment, moment)
        assert moment.astimezone(UTC) == datetime.fromisoformat(expected).replace(tzinfo=UTC)


def test_the_time_zone_decides_when_three_in_the_morning_is() -> None:
    found = CronSchedule("0 3 * * *", "Europe/Moscow").next_after(SATURDAY_NOON)
    assert found == datetime(2026, 11, 22, 0, tzinfo=UTC)
    assert found.isoformat() == "2026-11-22T03:00:00+03:00"
