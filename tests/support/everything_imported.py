"""Imports all commands of `python -m batch`, for the fork server of `tests.support.forked_batch`.

The process must still have one thread: forks of a process with more threads may hang.
"""

from __future__ import annotations

from pathlib import Path

import click

from batch.cli import cli

for _name in cli.list_commands(click.Context(cli)):
    cli.get_command(click.Context(cli), _name)

_threads = [task.name for task in Path("/proc/self/task").iterdir()]
if len(_threads) > 1:
    raise AssertionError(f"importing the batch started {len(_threads) - 1} threads")
