from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask

from contract.errors import SettingsError
from contract.settings import Settings
from serving.app import EXTENSION
from serving.list_store import open_redis
from tests.support.serving import (
    ask,
    serving,
    settings_for,
)


def test_before_anything_was_loaded_lists_and_readiness_are_unavailable() -> None:
    with serving(settings_for("redis://127.0.0.1:1/0", state_refresh_seconds=0.05)) as app:
        for path in (
            "/users/42/recommendations",
            "/posts/popular",
            "/post/recommendations/?id=42",
            "/readyz",
        ):
            response = app.test_client().get(path)
            assert (response.status_code, response.content_type) == (503, "application/problem+json")
        assert ask(app, "/healthz") == {"status": "alive"}


def test_a_redis_url_with_a_bad_option_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="REDIS_URL"):
        open_redis(Settings.of(redis_url="redis://localhost:6379/0?socket_timeout=abc"), 0.05)


def _share(app: Flask, file: Path) -> None:
    app.extensions[EXTENSION].live.shared_file = file


@pytest.mark.parametrize("saved", ["", "[]", "{}", '{"runs": [{}]}', '{"runs": 1}'])
def test_what_another_version_saved_is_not_served(
    saved: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state.json").write_text(saved)
    with serving(settings_for("redis://127.0.0.1:1/0")) as app:
        _share(app, tmp_path / "state.json")
        ask(app, "/users/42/recommendations", 503)
    assert "cannot read the state that another worker saved" in caplog.text
