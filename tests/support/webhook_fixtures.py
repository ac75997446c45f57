"""Fixture of a webhook; a test module loads it with `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from batch.alerts import alert
from tests.support.webhook import Webhook, listening


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    """A webhook that accepts everything, without pauses between tries."""
    monkeypatch.setattr(alert, "PAUSES_SECONDS", (0.0, 0.0))
    with listening() as found:
        yield found
