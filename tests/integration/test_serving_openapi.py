"""The OpenAPI document against the routes; schemathesis tries what it allows and what it forbids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from serving.cursor import POPULAR, Cursor, encode_cursor
from serving.routes import load_openapi
from tests.support.serving import CONTROL_RUN, ask, publish, recommend, serving, settings_for

TOP_N = 12
DOCUMENT = load_openapi(TOP_N)
PATHS = list(DOCUMENT["paths"])

CURSOR = "a cursor of that user"
schemathesis.openapi.format("cursor", st.just(CURSOR))


@pytest.fixture(scope="module")
def app(valkey_server: str) -> Iterator[Flask]:
    """The app over one published run; nothing here changes it."""
    url = f"{valkey_server}/2"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        publish(client)
        with serving(settings_for(url, top_n=TOP_N)) as app:
            recommend(app, 42)
            yield app


@pytest.fixture(scope="module")
def api(app: Flask) -> Any:
    """The document as schemathesis read it from the app."""
    return schemathesis.openapi.from_wsgi("/openapi.json", app)


def check(case: Case, statuses: Counter[int]) -> None:
    """Make the request, and hold its answer against the document by every check there is."""
    if (case.query or {}).get("cursor") == CURSOR:
        user_id = str((case.path_parameters or {}).get("user_id"))
        if user_id.isdecimal():
            case.query["cursor"] = encode_cursor(Cursor(CONTROL_RUN, POPULAR, 5), int(user_id))
    statuses[case.call_and_validate().status_code] += 1


@pytest.mark.parametrize("path", PATHS)
def test_answers_are_as_the_document_says_whatever_is_asked(api: Any, path: str) -> None:
    operation = api[path]["GET"]
    statuses: Counter[int] = Counter()
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    covering = api.iter_coverage_cases(
        operation, generation_modes=modes, generation_config=api.config.generation_for(operation=operation)
    )
    for case in covering:
        check(case, statuses)

    for mode in modes if operation.query or operation.path_parameters else modes[:1]:

        @settings(
            max_examples=12,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def fuzz(case: Case) -> None:
            check(case, statuses)

        fuzz()
    print(path, dict(statuses))
    assert statuses[200]


def test_the_document_has_every_route_and_parameter(app: Flask) -> None:
    shown = {re.sub(r"<(\w+)>", r"{\1}", rule.rule) for rule in app.url_map.iter_rules()}
    assert set(PATHS) == shown
    assert ask(app, "/openapi.json") == DOCUMENT
    names = [operation["get"]["operationId"] for operation in DOCUMENT["paths"].values()]
    assert len(set(names)) == len(names)
