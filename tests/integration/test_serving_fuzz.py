"""Ten thousand requests, seeded, most of them wrong: never a 500 nor a traceback, and the fault is named."""

from __future__ import annotations

import random
from collections import Counter
from urllib.parse import quote, unquote_to_bytes

import redis
from werkzeug.test import EnvironBuilder, run_wsgi_app

from tests.integration.test_serving_input import NOT_CURSORS, NOT_IDS, NOT_LIMITS, NOT_TIMES
from tests.support.serving import publish, recommend, serving, settings_for

REQUESTS = 10_000
ROUTES = {
    "/users/{user_id}/recommendations": {"user_id": NOT_IDS, "limit": NOT_LIMITS, "cursor": NOT_CURSORS},
    "/posts/popular": {"limit": NOT_LIMITS},
    "/posts/{post_id}/similar": {"post_id": NOT_IDS, "limit": NOT_LIMITS, "user_id": NOT_IDS},
    "/post/recommendations/": {"id": NOT_IDS, "time": NOT_TIMES, "limit": NOT_LIMITS},
}
RIGHT = {"user_id": "42", "post_id": "7", "id": "42", "limit": "5", "time": "2021-12-29T21:00:00"}
METHODS = ["GET"] * 30 + ["POST", "PUT", "DELETE", "PATCH", "TRACE", "HEAD", "OPTIONS"]


def noise(rng: random.Random) -> str:
    """Return a text of any characters: controls, marks, other scripts, lone surrogates, parts of SQL."""
    pool = [chr(rng.choice((rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x110000))))]
    pool += ["'", '"', ";--", "%", "../", "\0", "\r\n", "-", "0", "9", "{{7*7}}", "$(id)", "NaN"]
    return "".join(rng.choices(pool, k=rng.randrange(1, 20)))


def wrong(rng: random.Random, bad: dict[str, str]) -> str:
    """Return a value of one of the wrong kinds, or noise that cannot be right."""
    return rng.choice([*bad.values(), noise(rng) + ("\0" if bad is NOT_TIMES else "x")])


def request(rng: random.Random) -> tuple[str, str, set[str]]:
    """Return path, query string, and which parameters are wrong in it."""
    route, parameters = rng.choice(list(ROUTES.items()))
    path, query, faults = route, [], set()
    for name, bad in parameters.items():
        in_path = f"{{{name}}}" in route
        kind = rng.choice(["right", "right", "wrong", "left out", "repeated"])
        if kind == "wrong":
            value = wrong(rng, bad)
        elif name == "cursor" or (kind == "left out" and not in_path):
            faults |= {name} if name == "id" else set()
            continue
        else:
            value = RIGHT[name]
        quoted = quote(value.encode(errors="surrogatepass"), safe="")
        if in_path:
            path = path.replace(f"{{{name}}}", quoted)
        else:
            query += [f"{name}={quoted}"] * (2 if kind == "repeated" else 1)
        if kind == "wrong" or (kind == "repeated" and not in_path):
            faults.add(name)
    rng.shuffle(query)
    return path, "&".join(query), faults


def test_ten_thousand_requests_get_an_answer_or_a_problem_that_names_the_fault(
    redis_url: str, redis_client: redis.Redis
) -> None:
    publish(redis_client)
    rng = random.Random(6)
    counts: Counter[str] = Counter()
    base = EnvironBuilder().get_environ()
    with serving(settings_for(redis_url)) as app:
        recommend(app, 42)
        for _ in range(REQUESTS):
            path, query, faults = request(rng)
            method = rng.choice(METHODS)
            raw_path = unquote_to_bytes(path).decode("latin1")
            environ = {**base, "REQUEST_METHOD": method, "PATH_INFO": raw_path, "QUERY_STRING": query}
            body, status, headers = run_wsgi_app(app, environ, buffered=True)
            text = b"".join(body).decode()
            description = f"{method} {path}?{query}: {status} {text}"
            code = int(status[:3])
            counts[str(code)] += 1
            assert "Traceback" not in text, description
            if method == "OPTIONS":
                assert code == 200, description
            elif method not in ("GET", "HEAD"):
                assert code in (404, 405), description
            elif not faults:
                assert code == 200, description
            else:
                assert code == 400, description
            if code >= 400:
                assert headers["Content-Type"] == "application/problem+json", description
                assert len(text) < 500, description
            if code == 400 and method == "GET":
                assert any(f'"parameter": "{name}"' in text for name in faults), description
    print("fuzz:", dict(counts))
    assert sum(counts.values()) == REQUESTS
    assert counts["200"] > 1000 < counts["400"]
