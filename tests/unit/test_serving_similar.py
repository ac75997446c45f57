from __future__ import annotations

from tests.support.serving import (
    serving,
    settings_for,
)

POST = 101


def test_before_anything_was_loaded_there_is_nothing_to_answer() -> None:
    with serving(settings_for("redis://127.0.0.1:1/0")) as app:
        response = app.test_client().get(f"/posts/{POST}/similar")
        assert (response.status_code, response.content_type) == (503, "application/problem+json")
