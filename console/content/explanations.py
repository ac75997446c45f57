"""Explanations of a user's scores: the job that makes them, and what it found for each post.

One job explains all posts of a page of the list, so the second click is answered from its result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flask import url_for

from batch.inspection.feature_words import MAX_PARTS, ScorePart, split_score
from batch.reports.bars import Bar, draw_signed_bars
from console.content.user_tables import UserList
from console.context import Console
from console.jobs import EXPLAIN, JobRecord
from contract.ids import Id

MAX_REASONS = 2
"""Parts of a score that a row of a list names."""
MIN_REASON = 0.001
"""Scores in lists have three decimals."""


@dataclass(frozen=True)
class ExplainRequest:
    """What is asked: the scores of these posts for a user in a run."""

    user_id: Id
    run_id: str
    post_ids: tuple[str, ...]

    @classmethod
    def of_page(cls, found: UserList, start: int, post_id: Id | None = None) -> ExplainRequest:
        """Return the request for a page of a list; for one post if it is not on the page."""
        shown = tuple(str(post["post_id"]) for post in found.page(start) if not post["gone"])
        asked = shown if post_id is None or str(post_id) in shown else (str(post_id),)
        return cls(found.served.user_id, found.served.run_id, asked)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the job."""
        return {"user": str(self.user_id), "run": self.run_id, "posts": list(self.post_ids)}


def why_url(found: UserList, start: int, post_id: Id) -> str:
    """Return the address of the explanation of a post of a page of a list."""
    arguments: dict[str, Any] = {"user": found.served.user_id, "run": found.served.run_id, "post": post_id}
    return url_for("why.why", **arguments | ({"from": start} if start > 1 else {}))


def find_job(console: Console, request: ExplainRequest) -> JobRecord | None:
    """Return the job that answers a request, running or ended; None if nobody has asked."""
    return console.jobs.latest(EXPLAIN, request.arguments) if request.post_ids else None


def read_answers(job: JobRecord | None) -> dict[str, Mapping[str, Any]]:
    """Return post id as text -> fields of `explain --json`; empty without a result."""
    if job is None or not job.output:
        return {}
    found: Sequence[Mapping[str, Any]] = job.output if isinstance(job.output, list) else [job.output]
    return {str(each["post_id"]): each for each in found}


def name_reasons(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, list[ScorePart]]:
    """Return for each post what raises it the most above the mean of all these posts.

    A feature of the user alone adds the same to all their posts, and so is no reason.

    Returns
    -------
    Post id as text -> at most MAX_REASONS parts; what they add is the difference to the mean.
    """
    parts = {
        post_id: {part.words: part for part in split_score(answer, len(answer["contributions"]) + 1)}
        for post_id, answer in answers.items()
        if "error" not in answer
    }
    total: Counter[str] = Counter()
    for of_post in parts.values():
        total.update({words: part.adds for words, part in of_post.items()})
    reasons = {}
    for post_id, of_post in parts.items():
        above = [replace(part, adds=part.adds - total[words] / len(parts)) for words, part in of_post.items()]
        above.sort(key=lambda part: -part.adds)
        reasons[post_id] = [part for part in above[:MAX_REASONS] if part.adds >= MIN_REASON]
    return reasons


def draw_parts(answer: Mapping[str, Any], count: int = MAX_PARTS) -> str:
    """Return the parts of a score as signed bars (SVG): `count` by name, the others together."""
    bars = [
        Bar(f"{part.words}: {part.value}" if part.value else part.words, part.adds, f"{part.adds:+.4f}")
        for part in split_score(answer, count)
    ]
    words = "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    return draw_signed_bars("parts", f"Parts of the score {answer['score']:.4f}", words, bars)
