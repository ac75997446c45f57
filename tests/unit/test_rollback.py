from __future__ import annotations

from datetime import UTC, datetime, timedelta

from batch.publishing.prune import not_kept
from batch.runs.ledger import Standing, State

NOW = datetime.now(UTC)


def stood(name: str, state: State, minutes: int) -> Standing:
    return Standing(name, name.split("-")[1], state, NOW - timedelta(minutes=minutes))


def test_what_is_kept_is_what_serves_the_newest_before_it_the_newest_refused_and_what_was_live_lately() -> (
    None
):
    runs = [
        stood("19-control", State.REFUSED, 5),
        stood("18-control", State.LIVE, 900),
        stood("17-control", State.ROLLED_BACK, 900),
        stood("16-control", State.ROLLED_BACK, 30),
        stood("15-control", State.REFUSED, 900),
        stood("14-control", State.FAILED, 1),
        stood("13-control", State.RETIRED, 900),
        stood("12-control", State.RETIRED, 900),
        stood("11-control", State.RETIRED, 30),
        stood("10-test", State.RETIRED, 9_000),
        stood("09-test", State.BUILDING, 3),
    ]
    found = not_kept(runs, {"18-control"}, 2, NOW - timedelta(minutes=60))
    assert [run.run_id for run in found] == [
        "09-test",
        "12-control",
        "14-control",
        "15-control",
        "17-control",
    ]
    # What serves stays, whatever the ledger says of it.
    assert "14-control" not in {run.run_id for run in not_kept(runs, {"14-control"}, 1, NOW)}
