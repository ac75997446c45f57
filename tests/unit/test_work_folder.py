from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from batch.files import PREFIX, remove_abandoned, work_folder
from tests.support.batch import ROOT

HOLD = (
    "import sys; from pathlib import Path; from batch.files import work_folder\n"
    "with work_folder(Path(sys.argv[1])) as folder: (folder / 'rows').touch(); print(1, flush=True); input()"
)
"""Make a work folder, and keep it until the process ends."""


def test_a_work_folder_is_removed_only_after_its_process_is_killed(tmp_path: Path) -> None:
    parent = tmp_path / "a run"
    command = [sys.executable, "-c", HOLD, str(parent)]
    with (
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        work_folder(tmp_path) as own,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        (folder,) = parent.glob(f"{PREFIX}*")
        remove_abandoned(tmp_path)
        assert folder.is_dir()
        assert own.is_dir()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        remove_abandoned(tmp_path)
        assert not folder.exists()
        assert own.is_dir()
    assert not own.exists()


def test_a_work_folder_of_a_process_killed_before_it_made_the_lock_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / f"{PREFIX}abc"
    folder.mkdir()
    os.utime(folder, (0, 0))
    remove_abandoned(tmp_path)
    assert not folder.exists()
