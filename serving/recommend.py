"""Decide what to answer from the list that was found: no I/O, no clock.

What a stored list implies
--------------------------
The batch scores every post for every user and leaves out the posts that the user
has liked or written and, with OVERNIGHT_LEAVE_OUT=viewed, viewed. A list shorter
than the run's top-N therefore holds *every* post that is not left out (except
posts blocked that night, which the popular list omits too): a popular post that
is not in it was left out, and must not be shown.

A list of full length holds N posts, the best ones but for the rules of the feed.
A popular post that is not in it was either left out or ranked lower; the list does
not say which. In both cases the only posts known not to be left out are those in
the list, and no other post can be added: a known user's answer may be shorter than
`limit`, and never shows a post that they have liked.

The first page is not empty while there is anything to show. If the user's list
is missing (an unknown user), empty (everything is left out), or all its posts are
blocked or gone, the popular list is served, and `source` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import NamedTuple

from contract.codec import Ranked, StoredList
from contract.exposures import ExploredPost
from contract.ids import Id
from contract.keys import Keys
from contract.run_id import parse_run_id
from contract.score_kind import LIKES, PERSONAL, POPULAR, SIMILARITY
from serving.cursor import Cursor
from serving.state import AssignedUser, Run, State

SIMILAR = "similar"


class RunGoneError(Exception):
    """Raised when the run of a cursor has been pruned."""


class Recommendation(NamedTuple):
    """One post of an answer. `rank` is its position in the stored list, from 1: blocked posts leave gaps."""

    post_id: Id
    score: float
    rank: int


class Answer(NamedTuple):
    """One page.

    Attributes
    ----------
    next_cursor
        None at the end of the list.
    segment
        The segment whose popular list this is; None for any other list.
    explored
        The posts of the page that stand in explored places.
    """

    run: Run
    source: str
    stale: bool
    recommendations: list[Recommendation]
    next_cursor: Cursor | None
    segment: str | None = None
    explored: tuple[ExploredPost, ...] = ()

    @property
    def score_kind(self) -> str | None:
        """The kind of the scores; None if the recipe of the run is not known."""
        if self.source == PERSONAL:
            return self.run.recipe
        return LIKES if self.source == POPULAR else SIMILARITY


def list_key(keys: Keys, user: AssignedUser, cursor: Cursor | None) -> str:
    """Return the key of the list to read: of the cursor's run, else of the user's live run.

    The list of a cursor with a segment is a field of a hash.
    """
    if cursor is None:
        return keys.user(user.run.run_id, user.user_id)
    if cursor.segment is not None:
        return keys.segments(cursor.run_id)
    if cursor.source == POPULAR:
        return keys.popular(cursor.run_id)
    return keys.user(cursor.run_id, user.user_id)


def answer_from_list(
    state: State, user: AssignedUser, limit: int, cursor: Cursor | None, found: StoredList | None
) -> Answer:
    """Answer from the list that was read; `found` is None if the key does not exist.

    Raises
    ------
    RunGoneError
        If the cursor's run is neither in Redis nor live.
    """
    if cursor is None:
        if found and not _all_blocked(found.posts, state.blocked):
            return _make_page(state, user.run, PERSONAL, found, limit=limit)
        return answer_popular(state, user.run, limit, user.segment)
    run = state.find_run(cursor.run_id)
    if found and found.posts:
        run = run or _run_of_cursor(cursor)
        return _make_page(state, run, cursor.source, found, limit=limit, start=cursor)
    if found is None and run is None:
        raise RunGoneError
    return answer_from_memory(state, user, limit, cursor)


def answer_from_memory(state: State, user: AssignedUser, limit: int, cursor: Cursor | None) -> Answer:
    """Answer without a list: the next page of a popular list if the cursor is of one, else its first."""
    if cursor is not None and cursor.source == POPULAR:
        run = state.find_run(cursor.run_id)
        posts = None if run is None else run.popular_in(cursor.segment)
        if run is not None and posts is not None:
            return _make_page(state, run, POPULAR, StoredList(posts), limit=limit, start=cursor)
    return answer_popular(state, user.run, limit, user.segment)


def answer_popular(state: State, run: Run, limit: int, segment: str | None = None) -> Answer:
    """Answer with the first page of the segment's popular list in a live run, if it has one to show.

    Otherwise with the first page of the run's own popular list.
    """
    if segment is not None:
        posts = run.popular_in(segment)
        if posts is not None and not _all_blocked(posts, state.blocked):
            start = Cursor(run.run_id, POPULAR, 0, segment=segment)
            return _make_page(state, run, POPULAR, StoredList(posts), limit=limit, start=start)
    return _make_page(state, run, POPULAR, StoredList(run.popular), limit=limit)


def answer_similar(state: State, run: Run, post_id: Id, limit: int, found: StoredList | None) -> Answer:
    """Answer with the first similar posts; without a list, with popular posts other than `post_id`."""
    if found and not _all_blocked(found.posts, state.blocked):
        return _make_page(state, run, SIMILAR, found, limit=limit)
    return answer_popular(replace(state, blocked=state.blocked | {post_id}), run, limit)


def _all_blocked(posts: Ranked, blocked: Set[Id]) -> bool:
    return all(post in blocked for post, _ in posts)


def _make_page(
    state: State, run: Run, source: str, found: StoredList, *, limit: int, start: Cursor | None = None
) -> Answer:
    """Make the page that begins at the cursor, or the first one."""
    posts, probabilities = found
    offset, segment = (0, None) if start is None else (start.offset, start.segment)
    recommendations, end = _take(posts, state.blocked, offset, limit)
    more = not _all_blocked(posts[end:], state.blocked)
    next_cursor = Cursor(run.run_id, source, end, run.recipe, segment) if more else None
    explored = _find_explored(recommendations, probabilities) if probabilities else ()
    return Answer(run, source, state.stale, recommendations, next_cursor, segment, explored)


def _find_explored(
    recommendations: Sequence[Recommendation], probabilities: Mapping[int, float]
) -> tuple[ExploredPost, ...]:
    """Return the posts in explored places; the probabilities are by index in the stored list."""
    return tuple(
        ExploredPost(post_id, rank, probabilities[rank - 1])
        for post_id, _, rank in recommendations
        if rank - 1 in probabilities
    )


def _take(posts: Ranked, blocked: Set[Id], offset: int, limit: int) -> tuple[list[Recommendation], int]:
    """Take `limit` posts that are not blocked; also return the index at which the next page starts.

    Indices are those of the stored list, which does not change. So blocking or
    unblocking posts between two pages does not make one repeat the other.
    """
    taken: list[Recommendation] = []
    index = offset
    while index < len(posts) and len(taken) < limit:
        post, score = posts[index]
        index += 1
        if post not in blocked:
            taken.append(Recommendation(post, score, index))
    return taken, index


def _run_of_cursor(cursor: Cursor) -> Run:
    """Return a run that is no longer live, with what the cursor says of it."""
    started_at, variant = parse_run_id(cursor.run_id)
    return Run(cursor.run_id, variant, started_at, [], cursor.recipe)
