from __future__ import annotations

from datetime import UTC, datetime, timedelta

from batch.publishing.prune import runs_to_prune
from batch.runs.ledger import RunStatus, State

NOW = datetime.now(UTC)


def make_status(name: str, state: State, minutes: int) -> RunStatus:
    return RunStatus(name, name.split("-")[1], state, NOW - timedelta(minutes=minutes))


def test_what_is_kept_is_what_serves_the_newest_before_it_the_newest_refused_and_what_was_live_lately() -> (
    None
):
    runs = [
        make_status("19-control", State.REFUSED, 5),
        make_status("18-control", State.LIVE, 900),
        make_status("17-control", State.ROLLED_BACK, 900),
        make_status("16-control", State.ROLLED_BACK, 30),
        make_status("15-control", State.REFUSED, 900),
        make_status("14-control", State.FAILED, 1),
        make_status("13-control", State.RETIRED, 900),
        make_status("12-control", State.RETIRED, 900),
        make_status("11-control", State.RETIRED, 30),
        make_status("10-test", State.RETIRED, 9_000),
        make_status("09-test", State.BUILDING, 3),
    ]
    found = runs_to_prune(runs, {"18-control"}, 2, NOW - timedelta(minutes=60))
    assert [run.run_id for run in found] == [
        "09-test",
        "12-control",
        "14-control",
        "15-control",
        "17-control",
    ]
    # The run that serves is kept, whatever its state in the ledger.
    assert "14-control" not in {run.run_id for run in runs_to_prune(runs, {"14-control"}, 1, NOW)}
