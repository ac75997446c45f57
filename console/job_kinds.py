"""Kinds of jobs: the commands of the batch that the console may run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NIGHT, REFRESH, DOCTOR, REPORT, EXPLAIN, WEBHOOK = (
    "night",
    "refresh",
    "doctor",
    "report",
    "explain",
    "webhook",
)
"""Kinds of jobs."""


@dataclass(frozen=True)
class JobKind:
    """A kind of job.

    Attributes
    ----------
    command
        Arguments of `python -m batch`; `{name}` stands for an argument of the job.
    reads_only
        Whether it changes nothing: then viewers and a read-only console may run it, and its result is kept in
        memory, not in Postgres.
    prints_json
        Whether its output is a JSON document, which the job keeps.
    kept
        Whether the result of one that only reads is in Postgres too, if the console may write there.
    failed
        What exit code 1 means if there is output all the same.
    """

    title: str
    command: tuple[str, ...]
    reads_only: bool = False
    prints_json: bool = False
    kept: bool = False
    failed: str | None = None


KINDS: Mapping[str, JobKind] = {
    NIGHT: JobKind("night", ("run", "--variant", "{variant}")),
    REFRESH: JobKind("refresh", ("refresh",)),
    DOCTOR: JobKind("doctor", ("doctor", "--json"), prints_json=True, failed="done: some checks fail"),
    WEBHOOK: JobKind("try the webhook", ("alert", "--event", "test", "--reason", "sent from the console")),
    REPORT: JobKind(
        "experiment report",
        ("experiment", "report", "--json", "{options}"),
        reads_only=True,
        prints_json=True,
        kept=True,
    ),
    EXPLAIN: JobKind(
        "explain",
        ("explain", "--json", "--run", "{run}", "--", "{user}", "{posts}"),
        reads_only=True,
        prints_json=True,
    ),
}


def describe_arguments(arguments: Mapping[str, Any]) -> str:
    """Return the arguments of a job as people write them; options as on the command line."""
    texts = []
    for name, value in arguments.items():
        if name == "options":
            texts.append(shlex.join(map(str, value)))
        else:
            texts.append(f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    return "; ".join(filter(None, texts))


def make_arguments(kind: JobKind, arguments: Mapping[str, Any]) -> list[str]:
    """Return the arguments of `python -m batch`: `{name}` replaced by one argument, or by each of a list."""
    given: list[str] = []
    for word in kind.command:
        if word.startswith("{"):
            value = arguments[word.strip("{}")]
            given += map(str, value) if isinstance(value, list) else [str(value)]
        else:
            given.append(word)
    return given
