"""`python -m demo dask` stopped while it runs: its network, servers and Dask processes must end with it.

`make demo-dask` checks the rest itself: checksums, lists and answers.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.demo import find_processes, start_demo

SMALL = ("--users", "8192", "--posts", "200", "--interactions", "10000")
STARTED = "==> Running the night on the workers"


def test_ctrl_c_stops_a_night_on_workers_and_everything_that_was_started(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with start_demo(STARTED, folder, "dask", *SMALL) as process:
        names = {path.stem for path in (folder / "dask").glob("dask-*.pid")}
        assert names == {"dask-scheduler", "dask-worker-1", "dask-worker-2"}
        assert len(find_processes(folder)) > len(names)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 128 + signal.SIGINT
    assert find_processes(folder) == []
    assert list((folder / "dask").glob("dask-*.pid")) == []
    for name in names:
        assert "Traceback" not in (folder / "dask" / f"{name}.log").read_text()
