"""Jobs of the console: child processes, here a script in place of the batch, with their log and output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Thread
from typing import Any, cast

import pytest

from batch.context import Stores
from console import jobs as jobs_module
from console.job_kinds import KINDS, make_arguments
from console.jobs import DOCTOR, EXPLAIN, BusyError, JobRecord, Jobs
from contract.settings import Settings
from tests.support.scheduler import until

PASSWORD = "s3cret-password"
SETTINGS = Settings.of(
    database_url=f"postgresql://u:{PASSWORD}@127.0.0.1:1/x",
    top_n=7,
    console_secret="a secret of the console",
)

# `explain --json --run SCRIPT -- USER POSTS`: the run is the program.
RUNS_ITS_ARGUMENT = "import sys; exec(sys.argv[4])"

MakeJobs = Callable[..., Jobs]


@pytest.fixture
def make_jobs() -> Iterator[MakeJobs]:
    made: list[Jobs] = []

    def make(settings: Settings = SETTINGS) -> Jobs:
        # Jobs that only read never open a connection on a read-only console.
        made.append(Jobs(settings, cast(Stores, None), (sys.executable, "-c", RUNS_ITS_ARGUMENT)))
        return made[-1]

    yield make
    for jobs in made:
        jobs.close()


def explain(jobs: Jobs, code: str, posts: tuple[int, ...] = (1,)) -> JobRecord:
    return jobs.start(EXPLAIN, {"run": code, "user": 5, "posts": list(posts)}, "anna")


def end_of(jobs: Jobs, job: JobRecord) -> JobRecord:
    """Wait for a job's end."""
    until(lambda: not _find(jobs, job).running)
    return _find(jobs, job)


def _find(jobs: Jobs, job: JobRecord) -> JobRecord:
    found = jobs.find(job.job_id)
    assert found is not None
    return found


def test_a_job_keeps_its_output_its_last_lines_and_its_exit_code_in_words(make_jobs: MakeJobs) -> None:
    jobs = make_jobs()
    code = (
        "import json, sys; [print(f'line {n}', file=sys.stderr) for n in range(300)]; "
        "print(json.dumps({'arguments': sys.argv[5:], 'odd': 'a\\0b', 'none': float('nan')}))"
    )
    done = end_of(jobs, explain(jobs, code, (3, 4)))
    assert (done.exit_code, done.meaning) == (0, "done")
    assert done.output == {"arguments": ["--", "5", "3", "4"], "odd": "a\ufffdb", "none": None}
    assert done.log.splitlines()[0] == "line 100"
    assert len(done.log.splitlines()) == jobs_module.LOG_LINES
    same = {"run": code, "user": 5, "posts": [3, 4]}
    assert jobs.latest(EXPLAIN, same) == jobs.latest_result(EXPLAIN, same) == done
    assert jobs.latest(EXPLAIN, same | {"user": 6}) is None
    assert done.command.startswith("python -m batch explain --json --run ")

    failed = end_of(jobs, explain(jobs, "raise SystemExit(4)"))
    assert (failed.exit_code, failed.meaning) == (4, "another run holds the lock")
    assert failed.output is None
    assert jobs.latest_result(EXPLAIN, failed.arguments) is None
    said = end_of(jobs, explain(jobs, "print('x', file=sys.stderr); sys.exit('error: no such post')"))
    assert (said.exit_code, said.meaning) == (1, "failed: no such post")
    killed = end_of(jobs, explain(jobs, "import os; os.kill(os.getpid(), 9)"))
    assert killed.meaning == "killed by SIGKILL, perhaps because memory ran out"
    assert [job.job_id for job in jobs.held()] == [killed.job_id, said.job_id, failed.job_id, done.job_id]


def test_a_child_gets_the_settings_and_the_name_but_no_secret_of_the_console_and_shows_none(
    make_jobs: MakeJobs,
) -> None:
    code = (
        "import json, os, sys; print(os.environ['DATABASE_URL'], '\\x1b[31m', file=sys.stderr); "
        "print(json.dumps(dict(os.environ)))"
    )
    jobs = make_jobs()
    done = end_of(jobs, explain(jobs, code))
    assert done.output["OVERNIGHT_TOP_N"] == "7"
    assert done.output["LOGNAME"] == "anna (console)"
    assert not [name for name in done.output if name.startswith("OVERNIGHT_CONSOLE_")]
    assert PASSWORD not in json.dumps(done.output) + done.log
    assert done.log == r"postgresql://u:***@127.0.0.1:1/x \x1b[31m"
    assert Settings.from_environment(SETTINGS.to_environment()) == SETTINGS


def test_equal_jobs_are_one_and_a_third_that_reads_is_told_to_wait(
    make_jobs: MakeJobs, tmp_path: Path
) -> None:
    jobs = make_jobs()
    go = tmp_path / "go"
    waits = f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)"
    together, started = Barrier(8), []

    def start() -> None:
        together.wait()
        started.append(explain(jobs, waits).job_id)

    threads = [Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 8
    assert len(set(started)) == 1
    other = explain(jobs, waits, (2,))
    with pytest.raises(BusyError, match="nothing was started; try again"):
        explain(jobs, waits, (3,))
    go.touch()
    for job in jobs.held():
        assert end_of(jobs, job).meaning == "done"
    assert len(jobs.held()) == 2
    assert explain(jobs, waits).job_id not in {*started, other.job_id}


STUBBORN = (
    "import signal, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', file=sys.stderr)"
)


def test_a_job_is_stopped_by_hand_by_its_time_limit_and_with_the_console(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "STOP_REFRESH_SECONDS", 0.2)
    monkeypatch.setattr(jobs_module, "FLUSH_SECONDS", 0.05)
    jobs = make_jobs()
    job = explain(jobs, f"{STUBBORN}\nsignal.pause()")
    until(lambda: _find(jobs, job).log == "ready")
    assert jobs.stop(job.job_id, "ben")
    assert _find(jobs, job).stopped == "stopped by ben"
    assert end_of(jobs, job).meaning == "stopped by ben, by force"
    assert not jobs.stop(job.job_id)
    assert not jobs.stop("unknown")

    with monkeypatch.context() as patch:
        patch.setattr(jobs_module, "READING_SECONDS", 0.1)
        limited = end_of(jobs, explain(jobs, "import signal; signal.pause()"))
    assert (limited.exit_code, limited.meaning) == (-15, "stopped, because it took over 0.1 s")

    last = explain(jobs, "import signal; signal.pause()", (9,))
    jobs.close()
    assert _find(jobs, last).meaning == "stopped because the console ended"
    with pytest.raises(BusyError, match="stopping"):
        explain(jobs, "pass")


def test_only_some_ended_jobs_stay_and_one_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "MAX_ENDED", 2)
    jobs = Jobs(SETTINGS, cast(Stores, None), ("/no/such/program",))
    ended = [end_of(jobs, explain(jobs, "", (number,))) for number in range(3)]
    assert "could not be started" in str(ended[0].meaning)
    assert [job.job_id for job in jobs.held()] == [ended[2].job_id, ended[1].job_id]
    assert "could not be started" in str(end_of(jobs, explain(jobs, "a\0b")).meaning)


def test_commands_are_argument_lists() -> None:
    posts: dict[str, Any] = {"run": "r", "user": "-5; rm", "posts": ["$(a)", "b c"]}
    given = make_arguments(KINDS[EXPLAIN], posts)
    assert given == ["explain", "--json", "--run", "r", "--", "-5; rm", "$(a)", "b c"]
    assert make_arguments(KINDS[DOCTOR], {}) == ["doctor", "--json"]
