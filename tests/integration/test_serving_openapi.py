"""The OpenAPI document against the routes; schemathesis tries what it allows and what it forbids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest
import redis
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from contract.ids import Id, IdKind, IdKinds
from serving.cursor import POPULAR, Cursor, encode_cursor
from serving.routes import load_openapi
from tests.support.serving import CONTROL_RUN, ask, publish, recommend, serving, settings_for

TOP_N = 12
DOCUMENT = load_openapi(TOP_N)
USERS: dict[IdKind, Id] = {
    IdKind.NUMBER: 42,
    IdKind.UUID: "0d5ee3b5-9d7c-4d36-8a2c-6f0a3a3c8a11",
    IdKind.TEXT: "a/b c",
}
PATHS = list(DOCUMENT["paths"])

CURSOR = "a cursor of that user"
schemathesis.openapi.format("cursor", st.just(CURSOR))


@pytest.fixture(scope="module", params=list(IdKind))
def app(request: pytest.FixtureRequest, valkey_server: str) -> Iterator[Flask]:
    """The app over one published run; nothing here changes it. Other ids than numbers come with segments."""
    url, kind = f"{valkey_server}/2", request.param
    user = USERS[kind]
    name = {IdKind.NUMBER: int, IdKind.UUID: f"{user}"[:-2].__add__, IdKind.TEXT: "post ".__add__}[kind]
    posts = [(name(str(post)), 1.0) for post in range(10, 20)]
    segments = None if kind is IdKind.NUMBER else {"DE": posts[:3]}
    drawn = posts if kind is IdKind.NUMBER else [*posts[:4], (*posts[4], 0.5)]
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        publish(client, lists={user: drawn}, popular=posts, ids=IdKinds(kind, kind), segments=segments)
        with serving(settings_for(url, top_n=TOP_N)) as app:
            recommend(app, user)
            yield app


@pytest.fixture(scope="module")
def api(app: Flask) -> Any:
    """The document as schemathesis read it from the app."""
    return schemathesis.openapi.from_wsgi("/openapi.json", app)


def check(case: Case, statuses: Counter[int]) -> None:
    """Make the request, and hold its answer against the document by every check there is."""
    if (case.query or {}).get("cursor") == CURSOR:
        user_id = (case.path_parameters or {}).get("user_id")
        case.query["cursor"] = encode_cursor(Cursor(CONTROL_RUN, POPULAR, 5), unquote(str(user_id)))
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


def test_the_document_has_every_route_and_parameter(app: Flask, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["app"]
    shown = {re.sub(r"<(\w+)>", r"{\1}", rule.rule) for rule in app.url_map.iter_rules()}
    assert set(PATHS) == shown
    served = ask(app, "/openapi.json")
    schemas = served["components"]["schemas"]
    types = {schemas[name]["type"] for name in ("UserId", "PostId")}
    assert types == {"integer" if kind == "number" else "string"}
    assert ("country" in str(served)) == (kind != "number")
    assert (served == DOCUMENT) == (kind == "number")
    names = [operation["get"]["operationId"] for operation in DOCUMENT["paths"].values()]
    assert len(set(names)) == len(names)
