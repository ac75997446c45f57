"""The app without the parts of serving.tuned, for gunicorn."""

from __future__ import annotations

from contract.settings import Settings
from serving.app import create_app
from serving.list_store import open_redis

_settings = Settings.from_environment()
app = create_app(_settings, open_redis(_settings, _settings.serving.redis_timeout_ms / 1000), tuned=False)
