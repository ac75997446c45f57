"""Send example requests to serving, print the answers, and compare them with Postgres and Redis."""

from __future__ import annotations

import html
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

import redis
import sqlalchemy as sa

from batch.formatting import echo
from batch.loading.schema import OPTIONAL, cast_id, check_views
from batch.redis_client import live_run_id, live_run_ids
from contract import columns
from contract.codec import Ranked, decode_list, decode_object
from contract.experiment import CONTROL, VARIANTS
from contract.ids import Id, IdKind, IdKinds, decode_id, encode_id, parse_id
from contract.keys import Keys
from contract.manifest import Manifest
from demo.console_pages import page_path
from demo.gunicorn import http_get
from demo.processes import ROOT, DemoError

LIMIT = 5
MAX_TEXT_CHARACTERS = 60
MAX_CANDIDATES = 5000

CURRENT_LIKES = """(
    SELECT user_id, post_id FROM recs.interactions i
    WHERE action = 'like' AND happened_at <= :cutoff AND NOT EXISTS (
        SELECT FROM recs.interactions u WHERE u.action = 'unlike' AND u.happened_at >= i.happened_at
          AND u.happened_at <= :cutoff AND u.user_id = i.user_id AND u.post_id = i.post_id
    )
) AS likes"""
"""Likes up to a time that had not been taken back by then."""

# Uuids are read as text. In conditions ids are literals without a type, which Postgres takes as the column's.
LIKES_OF_USERS = f"""
    SELECT {{user_id}}, count(DISTINCT post_id) AS likes FROM {CURRENT_LIKES}
    WHERE user_id IN :users AND user_id NOT IN (SELECT user_id FROM activity)
    GROUP BY user_id ORDER BY user_id
"""
"""Who acts in the network's app may have liked posts of their list since."""
LIKED = f"SELECT {{post_id}} FROM {CURRENT_LIKES} WHERE user_id IN :users"
LIKES = """
    SELECT {post_id}, {like_count} - coalesce(later, 0) AS likes FROM recs.posts LEFT JOIN (
        SELECT post_id, sum(given) AS later FROM (
            SELECT post_id, 1 AS given FROM recs.interactions i
            WHERE action = 'like' AND happened_at > :cutoff AND NOT EXISTS (
                SELECT FROM recs.interactions u WHERE u.action = 'unlike' AND u.happened_at >= i.happened_at
                  AND u.user_id = i.user_id AND u.post_id = i.post_id
            )
            UNION ALL
            SELECT post_id, -1 FROM {current_likes} WHERE (user_id, post_id) IN (
                SELECT user_id, post_id FROM recs.interactions
                WHERE action = 'unlike' AND happened_at > :cutoff
            )
        ) AS changed GROUP BY post_id
    ) AS since USING (post_id) WHERE {like_count} IS NOT NULL
    UNION ALL
    SELECT {post_id}, coalesce(logged, 0) FROM recs.posts LEFT JOIN (
        SELECT post_id, count(*) AS logged FROM {current_likes}
        WHERE user_id IN (SELECT user_id FROM recs.users) GROUP BY post_id
    ) AS counted USING (post_id) WHERE {like_count} IS NULL
    ORDER BY 2 DESC, 1
"""
"""Likes of a post up to a time: the network's own counter, or the number of logged likes where it is null."""

TEXTS = """
    SELECT {post_id}, coalesce({text}, ''), coalesce({topic}, '') FROM recs.posts
    WHERE post_id IN :posts
"""
POST_TYPES = OPTIONAL[columns.POSTS]

UNKNOWN_USERS: dict[IdKind, Id] = {
    IdKind.UUID: "00000000-0000-4000-8000-000000000000",
    IdKind.TEXT: "nobody",
}
"""Ids that no user has."""

FAR_AWAY = 1_000_000
"""From the greatest number of a user: those who register get the next ones."""

Answer = dict[str, Any]


@dataclass(frozen=True)
class Examples:
    """Requests for users that exist in this network.

    Attributes
    ----------
    user
        A user who has a list, has liked a post, and has at least LIMIT posts left to like.
    unknown
        An id that no user has.
    """

    user: Id
    unknown: Id

    @property
    def user_page(self) -> str:
        """Path of the user's page of the console."""
        return page_path("users", self.user)

    @property
    def personal(self) -> str:
        """Request for the feed of a known user."""
        return f"/users/{encode_id(self.user)}/recommendations?limit={LIMIT}"

    @property
    def fallback(self) -> str:
        """Request for the feed of an unknown user."""
        return f"/users/{encode_id(self.unknown)}/recommendations?limit={LIMIT}"

    @property
    def popular(self) -> str:
        """Request for the popular posts."""
        return f"/posts/popular?limit={LIMIT}"

    @property
    def existing_client(self) -> str:
        """Request in the form that the network's existing clients use."""
        return f"/post/recommendations/?id={encode_id(self.user)}&time=2021-12-29T21:00:00&limit={LIMIT}"

    @property
    def invalid(self) -> str:
        """Request with an invalid parameter."""
        return f"/users/{encode_id(self.user)}/recommendations?limit=0"


@dataclass(frozen=True)
class Expected:
    """What the servers hold, read again on each call; `kinds` are those of the network's ids."""

    engine: sa.Engine
    client: redis.Redis
    keys: Keys
    kinds: IdKinds

    @classmethod
    def of_live_run(cls, engine: sa.Engine, client: redis.Redis, keys: Keys) -> Expected:
        """Return what the servers hold for ids of the kinds of control's live run."""
        manifest: Any = client.get(keys.manifest(str(live_run_id(client, keys, CONTROL))))
        return cls(engine, client, keys, Manifest.from_json(manifest).ids)

    def read_liked(self, user: Id) -> set[Id]:
        """Return the posts that the user has liked."""
        return {post for (post,) in self._read(LIKED, datetime.now(UTC), users=[user])}

    def count_likes(self, run_id: str) -> dict[Id, int]:
        """Return the likes, as of a run's cutoff, of every post that is not blocked, the most liked first."""
        blocked = self.read_blocked()
        cutoff = self._read_manifest(run_id).require_cutoff()
        return {post: likes for post, likes in self._read(LIKES, cutoff) if post not in blocked}

    def read_texts(self, posts: list[Id]) -> dict[Id, tuple[str, str]]:
        """Return text and topic by post, empty where the column is null."""
        found = self._read(TEXTS, datetime.now(UTC), posts=posts)
        return {post: (text, topic) for post, text, topic in found}

    def count_likes_of(self, users: list[Id]) -> dict[Id, int]:
        """Return how many posts each of these users has liked, ordered by user.

        Users without likes, and those who acted in the network's app, are left out.
        """
        counted = self._read(LIKES_OF_USERS, datetime.now(UTC), users=users)
        return {row.user_id: row.likes for row in counted}

    def count_posts(self) -> int:
        """Return how many posts the network has."""
        with self.engine.connect() as connection:
            return connection.scalar(sa.text("SELECT count(*) FROM recs.posts")) or 0

    def read_list(self, key: str) -> Ranked:
        """Return the list under a key, empty if the key does not exist."""
        value = self.client.get(key)
        return [] if value is None else decode_list(str(value))

    def read_blocked(self) -> set[Id]:
        """Return the blocked posts."""
        return {parse_id(str(post), self.kinds.posts) for post in self.client.smembers(self.keys.blocked)}

    def read_live_runs(self) -> set[str]:
        """Return the live run of each variant."""
        return set(live_run_ids(self.client, self.keys).values())

    def find_unknown_user(self) -> Id:
        """Return an id that no user has."""
        if self.kinds.users is not IdKind.NUMBER:
            return UNKNOWN_USERS[self.kinds.users]
        with self.engine.connect() as connection:
            return (connection.scalar(sa.text("SELECT max(user_id) FROM recs.users")) or 0) + FAR_AWAY

    def _read_manifest(self, run_id: str) -> Manifest:
        manifest: Any = self.client.get(self.keys.manifest(run_id))
        return Manifest.from_json(manifest)

    def _read(self, query: str, cutoff: datetime, **ids: list[Id]) -> Sequence[Any]:
        """Run a query with lists of ids; fill in optional columns of recs.posts, and ids as they are read."""
        with self.engine.connect() as connection:
            present = check_views(connection).posts
            names = {
                name: name if name in present else f"NULL::{types[0]}" for name, types in POST_TYPES.items()
            }
            names |= {"user_id": cast_id(columns.USER_ID, self.kinds.users)}
            names |= {"post_id": cast_id(columns.POST_ID, self.kinds.posts)}
            filled_in = sa.text(query.format_map(names | {"current_likes": CURRENT_LIKES}))
            lists: list[sa.BindParameter[Any]] = [sa.bindparam(name, expanding=True) for name in ids]
            return connection.execute(filled_in.bindparams(*lists), {"cutoff": cutoff, **ids}).all()


def choose_examples(expected: Expected) -> Examples:
    """Choose the users of the example requests.

    Raises
    ------
    DemoError
        If no user has both a list and a like.
    """
    run_id = str(live_run_id(expected.client, expected.keys, CONTROL))
    prefix = expected.keys.user(run_id, 0).removesuffix("0")
    found = islice(expected.client.scan_iter(match=f"{prefix}*", count=MAX_CANDIDATES), MAX_CANDIDATES)
    candidates = [decode_id(str(key).removeprefix(prefix), expected.kinds.users) for key in found]
    posts = expected.count_posts()
    for user, likes in expected.count_likes_of(candidates).items():
        if likes + LIMIT <= posts:
            return Examples(user, expected.find_unknown_user())
    raise DemoError(f"none of {len(candidates)} users with a list in {run_id} has liked a post")


class Addresses(NamedTuple):
    """Base URLs of the apps, without a trailing slash."""

    network: str
    serving: str
    console: str


def print_examples(examples: Examples, urls: Addresses, option: str) -> None:
    """Print addresses and commands ready to copy; `option` selects the network for `python -m demo exec`."""
    url = urls.serving
    path = Path(sys.executable)
    python = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
    batch = f"{python} -m demo exec{option} -- {python} -m batch"
    commands = [
        ("a user's feed", f"curl -s '{url}{examples.personal}'"),
        ("an unknown user gets what is popular", f"curl -s '{url}{examples.fallback}'"),
        ("what is popular", f"curl -s '{url}{examples.popular}'"),
        (
            "the request of existing clients, answered with texts",
            f"curl -s '{url}{examples.existing_client}'",
        ),
        ("the user's list in Redis", f"{batch} lookup {shlex.quote(str(examples.user))}"),
        ("the runs so far", f"{batch} runs"),
    ]
    echo(f"\nReady: the network on {urls.network}, the console on {urls.console}, the API on {url}.\n")
    echo(f"  # register, like, see the feed change: open in a browser\n  {urls.network}/\n")
    echo(f"  # what a user gets, and why\n  {urls.console}{examples.user_page}\n")
    echo("Things to try in another terminal:\n")
    for title, command in commands:
        echo(f"  # {title}\n  {command}\n")
    echo("Ctrl-C stops everything; the data stays.")


@dataclass(frozen=True)
class Request:
    """A request, the status and content type it must get, and a function that yields errors of its answer."""

    path: str
    check: Callable[[Answer], Iterable[str]]
    status: int = 200
    content_type: str = "application/json"


def check_answers(examples: Examples, expected: Expected, url: str) -> Answer:
    """Send every example request and compare the first answer, which is returned, with the list in Redis.

    Raises
    ------
    DemoError
        If an answer is wrong; names each wrong answer and each error.
    """
    personal: Answer = {}

    def check_personal(answer: Answer) -> Iterator[str]:
        personal.update(answer)
        yield from check_personal_feed(answer, examples.user, expected)

    requests = [
        Request(examples.personal, check_personal),
        Request(examples.fallback, lambda answer: check_fallback(answer, expected)),
        Request(examples.popular, lambda answer: check_popular(answer, expected)),
        Request(examples.existing_client, lambda answer: check_existing_client(answer, personal, expected)),
        Request(examples.invalid, check_problem, 400, "application/problem+json"),
    ]
    errors = [f"{request.path}: {error}" for request in requests for error in _send(request, url)]
    errors += _check_stored_list(examples.user, personal, expected)
    if errors:
        raise DemoError("; ".join(errors))
    return personal


def check_pages(examples: Examples, expected: Expected, personal: Answer, url: str) -> None:
    """Open two pages of the console: home must name the live runs, the user's page what serving answers.

    Raises
    ------
    DemoError
        If a page is wrong; names each wrong page and what it lacks.
    """
    posts = [
        f'href="{unquote_plus(page_path("posts", row["post_id"]))}"' for row in personal["recommendations"]
    ]
    wanted = {"/": sorted(expected.read_live_runs()), examples.user_page: posts}
    errors = []
    for path, texts in wanted.items():
        page = http_get(f"{url}{path}")
        found = unquote_plus(html.unescape(page.body))
        lacking = [text for text in texts if text not in found]
        if page.status != HTTPStatus.OK or lacking:
            errors.append(f"{path}: status {page.status}; it does not show {lacking}")
            continue
        echo(f"> {url}{path} shows {' '.join(texts)}")
    if errors:
        raise DemoError("; ".join(errors))


def _send(request: Request, url: str) -> list[str]:
    echo(f"\n$ curl -s '{url}{request.path}'")
    response = http_get(url + request.path)
    try:
        answer = decode_object(response.body)
    except ValueError:
        echo(response.body)
        return [f"status {response.status}, and no JSON object"]
    echo(_format_answer(answer))
    if (response.status, response.content_type) != (request.status, request.content_type):
        return [
            f"status {response.status} ({response.content_type}) instead of "
            f"{request.status} ({request.content_type})"
        ]
    try:
        return list(request.check(answer))
    except (KeyError, TypeError, AttributeError) as error:
        return [f"a field is missing or has the wrong type ({type(error).__name__}: {error})"]


def _check_stored_list(user: Id, personal: Answer, expected: Expected) -> Iterator[str]:
    """Print the user's list in Redis; yield an error unless it begins with the posts of the answer."""
    if "run_id" not in personal:
        return
    key = expected.keys.user(personal["run_id"], user)
    ranked = expected.read_list(key)
    echo(f"\n> GET {key}\n{_truncate(json.dumps([list(pair) for pair in ranked]))}\n")
    blocked = expected.read_blocked()
    stored = [(post, rank) for rank, (post, _) in enumerate(ranked, 1) if post not in blocked]
    if stored[:LIMIT] != [(row["post_id"], row["rank"]) for row in personal["recommendations"]]:
        yield f"{key} does not hold what was served"


def check_personal_feed(answer: Answer, user: Id, expected: Expected) -> Iterator[str]:
    """Yield the errors in a known user's feed."""
    rows = answer["recommendations"]
    posts = [row["post_id"] for row in rows]
    scores = [row["score"] for row in rows]
    liked, servable = expected.read_liked(user), expected.count_likes(answer["run_id"]).keys()
    count = min(LIMIT, len(servable - liked))
    if answer["user_id"] != user:
        yield f"it is for user {answer['user_id']}"
    if answer["source"] != "personal":
        yield f"source is {answer['source']} instead of personal"
    if answer["run_id"] not in expected.read_live_runs() or answer["variant"] not in VARIANTS:
        yield f"run {answer['run_id']} of {answer['variant']} is not live"
    if len(posts) != count:
        yield f"{len(posts)} posts instead of {count}"
    if liked.intersection(posts):
        yield f"the user has liked {sorted(liked.intersection(posts))} before"
    if not servable >= set(posts):
        yield f"posts {sorted(set(posts) - servable)} do not exist or are blocked"
    if scores != sorted(scores, reverse=True):
        yield "the best score is not first"
    yield from _check_ranks(rows)


def check_fallback(answer: Answer, expected: Expected) -> Iterator[str]:
    """Yield the errors in the answer for an unknown user."""
    if answer["source"] != "popular":
        yield f"source is {answer['source']} instead of popular"
    yield from check_popular(answer, expected)


def check_popular(answer: Answer, expected: Expected) -> Iterator[str]:
    """Yield the errors in the popular list; posts with equal likes may be in any order."""
    likes = expected.count_likes(answer["run_id"])
    found = [likes.get(row["post_id"], -1) for row in answer["recommendations"]]
    if found != list(likes.values())[:LIMIT]:
        yield f"posts with {found} likes instead of the most liked, {list(likes.values())[:LIMIT]}"
    yield from _check_ranks(answer["recommendations"])


def check_existing_client(answer: Answer, personal: Answer, expected: Expected) -> Iterator[str]:
    """Yield the errors in the answer for existing clients, which must agree with the same user's feed."""
    if set(answer) != {"exp_group", "recommendations"} or answer["exp_group"] != personal["variant"]:
        yield f"fields {sorted(answer)}, exp_group {answer['exp_group']}"
    posts = [row["id"] for row in answer["recommendations"]]
    if posts != [row["post_id"] for row in personal["recommendations"]]:
        yield "other posts than in the user's feed"
    texts = expected.read_texts(posts)
    for row in answer["recommendations"]:
        if (row["text"] or "", row["topic"] or "") != texts.get(row["id"]):
            yield f"text or topic of post {row['id']} is not the one in Postgres"


def check_problem(answer: Answer) -> Iterator[str]:
    """Yield an error unless the answer to an invalid request names the parameter."""
    if answer["status"] != 400 or "limit" not in json.dumps(answer):
        yield "it does not name the parameter `limit`"


def _check_ranks(rows: list[Answer]) -> Iterator[str]:
    ranks = [row["rank"] for row in rows]
    if len({row["post_id"] for row in rows}) != len(rows):
        yield "a post is in the list twice"
    if ranks != sorted(set(ranks)) or (ranks and ranks[0] < 1):
        yield f"ranks are {ranks}"


def _format_answer(answer: Answer) -> str:
    """Format an answer as JSON with one line per field and per recommendation; cut long texts."""
    lines = []
    for name, value in _truncate(answer).items():
        if isinstance(value, list):
            rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in value)
            lines.append(f"  {json.dumps(name)}: [\n{rows}\n  ]")
        else:
            lines.append(f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}"


def _truncate(value: Any) -> Any:
    """Cut every text in a JSON value to MAX_TEXT_CHARACTERS."""
    if isinstance(value, str) and len(value) > MAX_TEXT_CHARACTERS:
        return value[:MAX_TEXT_CHARACTERS] + "..."
    if isinstance(value, list):
        return [_truncate(item) for item in value]
    if isinstance(value, dict):
        return {name: _truncate(item) for name, item in value.items()}
    return value
