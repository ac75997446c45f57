"""Where a post stands in a user's list, or why it is not there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from contract.codec import Ranked


@dataclass(frozen=True)
class Asked:
    """The post that is asked about.

    Attributes
    ----------
    score
        The model's, of the user and the post.
    blocked
        Operators blocked it.
    known
        The run knew it.
    liked_at
        When the user liked it; None if they did not.
    """

    post_id: int
    score: float
    blocked: bool
    known: bool
    liked_at: datetime | None


@dataclass(frozen=True)
class Standing:
    """A post's rank (from 1) and score in a list, None where it is not there, and why, in words."""

    rank: int | None
    served_score: float | None
    why: str


def standing(ranked: Ranked | None, top_n: int, cutoff: datetime, post: Asked) -> Standing:
    """Tell where a post stands.

    Parameters
    ----------
    ranked
        The user's list in the run; None if there is none.
    top_n, cutoff
        The run's. A list shorter than its top N holds every post that could be shown.
    """
    for rank, (listed, score) in enumerate(ranked or [], start=1):
        if listed == post.post_id:
            told = [f"rank {rank} of {len(ranked or [])}, score {score}", *_kept_out(post, cutoff)]
            return Standing(rank, score, "; ".join(told))
    return Standing(None, None, "; ".join(["not in the list", *_why_not(ranked, top_n, cutoff, post)]))


def _why_not(ranked: Ranked | None, top_n: int, cutoff: datetime, post: Asked) -> list[str]:
    if ranked is None:
        return ["the run has no list of this user, who gets the popular posts"]
    if reasons := _kept_out(post, cutoff):
        return reasons
    if not post.known:
        return ["the post is newer than the run"]
    if len(ranked) < top_n:
        return ["every post left for this user is in it: this one was blocked, or liked, when it was made"]
    return [f"the last of its {len(ranked)} posts has {ranked[-1][1]}, this one {post.score:.3f}"]


def _kept_out(post: Asked, cutoff: datetime) -> list[str]:
    reasons = []
    if post.liked_at is not None:
        when = "since the run" if post.liked_at > cutoff else "before the run"
        reasons.append(f"liked at {post.liked_at.isoformat(timespec='seconds')}, {when}")
    if post.blocked:
        reasons.append("blocked by operators")
    return reasons
