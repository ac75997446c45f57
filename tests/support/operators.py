"""Shared by the tests of operators' commands: a network after a night, and its command line."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from contract.settings import Settings
from tests.support.batch import live_run, run_here

TOP_N = 10
"""Of 40 posts, so that lists are full and some posts are not in them."""


@dataclass(frozen=True)
class LiveNetwork:
    """A network with a live run of each variant: its stores, and a client of its Redis that returns text.

    Attributes
    ----------
    top_n
        Length of its lists.
    """

    database_url: str
    redis_url: str
    model_dir: Path
    client: redis.Redis
    top_n: int = TOP_N

    @property
    def settings(self) -> Settings:
        return Settings.of(
            database_url=self.database_url,
            redis_url=self.redis_url,
            model_dir=str(self.model_dir),
            threads=1,
            top_n=self.top_n,
        )

    def run_of(self, variant: str) -> str:
        """Return the live run of a variant; there must be one."""
        run_id = live_run(self.client, variant)
        assert run_id is not None
        return run_id

    def batch(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in this process."""
        return run_here(
            *arguments,
            database_url=self.database_url,
            redis_url=self.redis_url,
            model_dir=self.model_dir,
            **{"OVERNIGHT_TOP_N": str(self.top_n)} | environment,
        )

    def run_json(self, *arguments: str, code: int = 0) -> Any:
        """Run a command with --json and return its one document."""
        done = self.batch(*arguments, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)
