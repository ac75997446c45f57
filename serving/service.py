"""What the routes share: the state, and the one lookup of a request with what to answer without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus

from contract.experiment import VARIANTS
from contract.keys import Keys
from serving.cursor import Cursor
from serving.exposures import Exposures
from serving.list_store import Lists, UnavailableError
from serving.metrics import Metrics
from serving.problems import ProblemError
from serving.recommend import (
    Answer,
    RunGoneError,
    answer_found,
    answer_from_memory,
    answer_similar,
    key_to_read,
    most_needed,
)
from serving.refresher import LiveState
from serving.state import Run, State
from serving.texts import Post


@dataclass(frozen=True)
class Service:
    """What the routes share; `exposures` is None where they are not noted."""

    top_n: int
    keys: Keys
    lists: Lists
    live: LiveState
    metrics: Metrics
    exposures: Exposures | None

    def state(self) -> State:
        """Return the state to answer this request from; a 503 while none was ever loaded."""
        state = self.live.current
        if state is None:
            raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, "no run has been loaded yet; try again soon")
        return state

    def recommend(self, state: State, user_id: int, limit: int, cursor: Cursor | None) -> Answer:
        """Look up one list, and answer from it or, failing that, from memory."""
        answer = self._looked_up(state, user_id, limit, cursor)
        if cursor is None and len(state.runs) < len(VARIANTS):
            self._count_fallback(state.experiment.variant_of(user_id), answer)
        return answer

    def note(self, user_id: int, answer: Answer, seconds: float) -> None:
        """Note that a first page was answered, and how long after its request came in."""
        if self.exposures is not None:
            self.exposures.record(user_id, answer, seconds)

    def _count_fallback(self, assigned: str, answer: Answer) -> None:
        """Count an answer to a user of a variant that has no live run."""
        if assigned != answer.run.variant:
            self.metrics.other_variant.labels(assigned).inc()

    def _looked_up(self, state: State, user_id: int, limit: int, cursor: Cursor | None) -> Answer:
        try:
            found = self.lists.get(
                key_to_read(self.keys, state, user_id, cursor), most_needed(limit, cursor), state.blocked
            )
        except UnavailableError:
            return replace(answer_from_memory(state, user_id, limit, cursor), stale=True)
        try:
            return answer_found(state, user_id, limit, cursor, found)
        except RunGoneError:
            detail = "the run that this cursor belongs to is no longer kept; begin again without a cursor"
            raise ProblemError(HTTPStatus.GONE, detail, "cursor") from None

    def similar(self, state: State, run: Run, post_id: int, limit: int) -> Answer:
        """Look up a post's list of similar ones, and answer from it or, failing that, from memory."""
        try:
            found = self.lists.get(self.keys.post(run.run_id, post_id), most_needed(limit), state.blocked)
        except UnavailableError:
            return replace(answer_similar(state, run, post_id, limit, None), stale=True)
        return answer_similar(state, run, post_id, limit, found)

    def texts(self, state: State, post_ids: Sequence[int]) -> list[Post]:
        """Return what answers say of posts: from memory or by one lookup more; empty without Redis."""
        try:
            return state.texts.of(post_ids, self.lists.posts)
        except UnavailableError:
            return state.texts.of(post_ids, lambda _: {})
