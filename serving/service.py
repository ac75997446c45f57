"""Answer from one list in Redis, or from memory if Redis does not answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from contract.ids import Id
from contract.keys import Keys
from serving.cursor import Cursor
from serving.exposures import ExposureQueue
from serving.list_store import ListStore, UnavailableError
from serving.metrics import Metrics
from serving.problems import ProblemError
from serving.recommend import (
    Answer,
    RunGoneError,
    answer_from_list,
    answer_from_memory,
    answer_similar,
    list_key,
)
from serving.refresher import LiveState
from serving.state import AssignedUser, Run, State
from serving.texts import Post


@dataclass(frozen=True, kw_only=True)
class Service:
    """What all routes share; `exposures` is None if exposures are not recorded."""

    top_n: int
    keys: Keys
    lists: ListStore
    live: LiveState
    metrics: Metrics
    exposures: ExposureQueue | None

    def state(self) -> State:
        """Return the state to answer this request from.

        Raises
        ------
        ProblemError
            503, if no state was ever loaded.
        """
        state = self.live.current
        if state is None:
            raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, "no run has been loaded yet; try again soon")
        return state

    def recommend(self, state: State, user: AssignedUser, limit: int, cursor: Cursor | None) -> Answer:
        """Read one list and answer from it; if Redis does not answer, answer from memory.

        Raises
        ------
        ProblemError
            410, if the cursor's run has been pruned.
        """
        try:
            run = user.run if cursor is None else state.find_run(cursor.run_id)
            kind = None if run is None else run.ids.posts
            segment = None if cursor is None else cursor.segment
            found = self.lists.get(list_key(self.keys, user, cursor), kind, segment)
            answer = answer_from_list(state, user, limit, cursor, found)
        except UnavailableError:
            answer = answer_from_memory(state, user, limit, cursor)._replace(stale=True)
        except RunGoneError:
            detail = "the run that this cursor belongs to is no longer kept; begin again without a cursor"
            raise ProblemError(HTTPStatus.GONE, detail, "cursor") from None
        if cursor is None and user.variant != answer.run.variant:
            self.metrics.other_variant.labels(user.variant).inc()
        if answer.explored:
            self.metrics.explored_posts.inc(len(answer.explored))
        return answer

    def similar(self, state: State, run: Run, post_id: Id, limit: int) -> Answer:
        """Read a post's list of similar posts and answer from it; without Redis, from memory."""
        try:
            found = self.lists.get(self.keys.post(run.run_id, post_id), run.ids.posts)
        except UnavailableError:
            return answer_similar(state, run, post_id, limit, None)._replace(stale=True)
        return answer_similar(state, run, post_id, limit, found)

    def texts(self, state: State, post_ids: Sequence[Id]) -> list[Post]:
        """Return the texts of posts: from memory, or by one more read; empty without Redis."""
        try:
            return state.texts.get(post_ids, self.lists.get_posts)
        except UnavailableError:
            return state.texts.get(post_ids, lambda _: {})

    def record_exposure(self, user_id: Id, answer: Answer, seconds: float, *, first_page: bool) -> None:
        """Record an answered page, and how long the answer took: a first one, or one with explored places."""
        if self.exposures is not None and (first_page or answer.explored):
            self.exposures.record(user_id, answer, seconds, first_page=first_page)
