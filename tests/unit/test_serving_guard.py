from __future__ import annotations

import json
import logging

import pytest

from contract.errors import SettingsError
from contract.logs import configure_logging
from contract.settings import Settings
from serving.telemetry import JsonLines

TOKEN = "t0ken-of-a-good-length"


@pytest.mark.parametrize("tokens", ["short", f"{TOKEN},", "a token of words and length", "é" * 20])
def test_a_token_that_cannot_be_one_is_refused_without_being_shown(tokens: str) -> None:
    with pytest.raises(SettingsError, match=r"OVERNIGHT_API_TOKENS=\*\*\*: must be tokens") as raised:
        Settings.from_environment({"OVERNIGHT_API_TOKENS": tokens})
    assert tokens not in str(raised.value)


def test_the_metrics_need_another_port_than_the_rest() -> None:
    with pytest.raises(SettingsError, match="OVERNIGHT_METRICS_PORT"):
        Settings.from_environment({"OVERNIGHT_METRICS_PORT": "8000"})


def test_no_form_of_a_secret_stays_in_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings.of(
        redis_url="redis://user:p%22q%C3%A9%5C@host/0",
        database_url="postgresql://u:dbpass@host/x?sslpassword=sslpass",
        api_tokens=TOKEN,
    )
    before = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        configure_logging(settings, JsonLines())
        try:
            raise ValueError(f'no {TOKEN} p"qé\\')
        except ValueError:
            logging.getLogger("x").exception('broken: %s p"qé\\ p%%22q%%C3%%A9%%5C', "dbpass sslpass")
    finally:
        logging.getLogger().handlers[:], logging.getLogger().level = before
    line = capsys.readouterr().err
    assert json.loads(line)["message"] == "broken: *** *** *** ***"
    assert "ValueError: no *** ***" in line
    assert not any(secret in repr(settings) for secret in (TOKEN, "dbpass", "sslpass", "p%22"))
