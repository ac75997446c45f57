"""What to answer, decided from what was found: no I/O, no clock.

What a list tells
-----------------
The batch scores every post for every user and leaves out those the user liked.
So a list shorter than the run's top-N holds *every* post the user has not
liked (but those blocked that night, which its popular list lacks as well): a
popular post that is not in it was liked, and must not be shown.

A list of full length holds the N best: a popular post that is not in it was
either liked or ranked lower, and the list does not tell which. Either way the
posts known not to be liked are those in the list, and nothing can be filled in
from elsewhere: a known user's own list may come out shorter than `limit`, and
never shows what they liked.

Nobody gets an empty first page while there is anything to show: when the list
is missing (an unknown user), empty (they liked everything) or blocked from end
to end, the popular list is served and `source` says so.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import NamedTuple

from contract.codec import Ranked
from contract.keys import Keys
from contract.run_id import parse_run_id
from contract.score_kind import LIKES, SIMILARITY
from serving.cursor import PERSONAL, POPULAR, Cursor
from serving.state import Run, State

SIMILAR = "similar"


class RunGoneError(Exception):
    """Raised when the run that a cursor is pinned to is no longer kept."""


class Recommendation(NamedTuple):
    """One post of an answer. `rank` is its place in the stored list, from 1: a blocked post leaves a gap."""

    post_id: int
    score: float
    rank: int


@dataclass(frozen=True)
class Answer:
    """One page. `next_cursor` is None at the end of the list."""

    run: Run
    source: str
    stale: bool
    recommendations: list[Recommendation]
    next_cursor: Cursor | None

    @property
    def score_kind(self) -> str | None:
        """What kind the scores are; None if it is not known what the run's model learnt."""
        if self.source == PERSONAL:
            return self.run.recipe
        return LIKES if self.source == POPULAR else SIMILARITY


def key_to_read(keys: Keys, state: State, user_id: int, cursor: Cursor | None) -> str:
    """Return the key of the list to look up: the pinned run's with a cursor, else the user's live one."""
    if cursor is None:
        return keys.user(state.run_for(user_id).run_id, user_id)
    if cursor.source == POPULAR:
        return keys.popular(cursor.run_id)
    return keys.user(cursor.run_id, user_id)


def most_needed(limit: int, cursor: Cursor | None = None) -> int:
    """Return how many posts of a list a page needs where none is blocked: one more tells of a next page."""
    return (cursor.offset if cursor else 0) + limit + 1


def answer_found(
    state: State, user_id: int, limit: int, cursor: Cursor | None, found: Ranked | None
) -> Answer:
    """Answer from what the lookup found: a list, or None if there is none under the key.

    Raises
    ------
    RunGoneError
        If the cursor's run is neither in Redis nor live.
    """
    if cursor is None:
        if found and not all(post in state.blocked for post, _ in found):
            return _page(state, state.run_for(user_id), PERSONAL, found, 0, limit)
        return answer_popular(state, state.run_for(user_id), limit)
    run = state.loaded(cursor.run_id)
    if found:
        return _page(state, run or _pinned(cursor), cursor.source, found, cursor.offset, limit)
    if found is None and run is None:
        raise RunGoneError
    return answer_from_memory(state, user_id, limit, cursor)


def answer_from_memory(state: State, user_id: int, limit: int, cursor: Cursor | None) -> Answer:
    """Answer without a lookup: go on in the popular list if that was being paged, else begin it."""
    if cursor is not None and cursor.source == POPULAR:
        run = state.loaded(cursor.run_id)
        if run is not None:
            return _page(state, run, POPULAR, run.popular, cursor.offset, limit)
    return answer_popular(state, state.run_for(user_id), limit)


def answer_popular(state: State, run: Run, limit: int) -> Answer:
    """Answer with the first page of a live run's popular list."""
    return _page(state, run, POPULAR, run.popular, 0, limit)


def answer_similar(state: State, run: Run, post_id: int, limit: int, found: Ranked | None) -> Answer:
    """Answer with the head of a post's list of similar ones, or without a list with other popular posts."""
    if found and not all(post in state.blocked for post, _ in found):
        return _page(state, run, SIMILAR, found, 0, limit)
    return answer_popular(replace(state, blocked=state.blocked | {post_id}), run, limit)


def _page(state: State, run: Run, source: str, posts: Ranked, offset: int, limit: int) -> Answer:
    recommendations, end = _take(posts, state.blocked, offset, limit)
    more = any(post not in state.blocked for post, _ in posts[end:])
    next_cursor = Cursor(run.run_id, source, end, run.recipe) if more else None
    return Answer(run, source, state.stale, recommendations, next_cursor)


def _take(posts: Ranked, blocked: Set[int], offset: int, limit: int) -> tuple[list[Recommendation], int]:
    """Take `limit` posts that are not blocked, and say at which position the next page begins.

    Positions are those of the stored list, which does not change, so that
    posts blocked or unblocked between two pages make neither repeat the other.
    """
    taken: list[Recommendation] = []
    position = offset
    while position < len(posts) and len(taken) < limit:
        post, score = posts[position]
        position += 1
        if post not in blocked:
            taken.append(Recommendation(post, score, position))
    return taken, position


def _pinned(cursor: Cursor) -> Run:
    """Return a run that is no longer live as far as a cursor tells of it."""
    begun_at, variant = parse_run_id(cursor.run_id)
    return Run(cursor.run_id, variant, begun_at, [], cursor.recipe)
