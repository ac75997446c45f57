"""Makes the requests, prints what comes back, and holds it against Postgres and Redis."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import redis
import sqlalchemy as sa

from batch.loading.schema import OPTIONAL, check_views
from contract import columns
from contract.codec import Ranked, decode_list, decode_object
from contract.experiment import CONTROL, VARIANTS
from contract.keys import Keys
from demo.child_processes import ROOT
from demo.gunicorn import get
from demo.processes import DemoError

SHOWN_CHARACTERS = 60

Answer = dict[str, Any]
Check = Callable[[Answer], Iterable[str]]


def check_answers(examples: Examples, truth: Truth, address: str) -> None:
    """Make every request, and look up the first one's list where it is kept.

    Raises
    ------
    DemoError
        Names each answer that is wrong, and in what.
    """
    served: Answer = {}

    def personal(answer: Answer) -> Iterator[str]:
        served.update(answer)
        yield from wrong_in_personal(answer, examples.user, truth)

    requests: list[tuple[str, int, str, Check]] = [
        (examples.personal, 200, "application/json", personal),
        (examples.fallback, 200, "application/json", lambda answer: wrong_in_fallback(answer, truth)),
        (examples.popular, 200, "application/json", lambda answer: wrong_in_popular(answer, truth)),
        (
            examples.existing_client,
            200,
            "application/json",
            lambda answer: wrong_for_existing_client(answer, served, truth),
        ),
        (examples.bad, 400, "application/problem+json", wrong_in_problem),
    ]
    wrong = []
    for path, status, content_type, check in requests:
        wrong += [f"{path}: {what}" for what in _ask(address + path, status, content_type, check)]
    wrong += _look_up(examples.user, served, truth)
    if wrong:
        raise DemoError("; ".join(wrong))
    click.echo("Every answer is right.")


def _ask(url: str, status: int, content_type: str, check: Check) -> list[str]:
    click.echo(f"\n$ curl -s '{url}'")
    found_status, found_type, body = get(url)
    try:
        answer = decode_object(body)
    except ValueError:
        click.echo(body)
        return [f"status {found_status}, and no JSON object"]
    click.echo(_printed(answer))
    if (found_status, found_type) != (status, content_type):
        return [f"status {found_status} ({found_type}) instead of {status} ({content_type})"]
    try:
        return list(check(answer))
    except (KeyError, TypeError, AttributeError) as error:
        return [f"not of the agreed shape ({type(error).__name__}: {error})"]


def _look_up(user: int, served: Answer, truth: Truth) -> Iterator[str]:
    """Print the user's list as Redis holds it; it must begin with what was served."""
    if "run_id" not in served:
        return
    key = truth.keys.user(served["run_id"], user)
    stored = truth.stored(key)
    click.echo(f"\n> GET {key}\n{_shortened(json.dumps([list(pair) for pair in stored]))}\n")
    blocked = truth.blocked()
    shown = [(post, rank) for rank, (post, _) in enumerate(stored, 1) if post not in blocked]
    if shown[:LIMIT] != [(row["post_id"], row["rank"]) for row in served["recommendations"]]:
        yield f"{key} does not hold what was served"


def wrong_in_personal(answer: Answer, user: int, truth: Truth) -> Iterator[str]:
    """Tell what is wrong with a known user's feed."""
    rows = answer["recommendations"]
    posts = [row["post_id"] for row in rows]
    scores = [row["score"] for row in rows]
    liked, there = truth.liked(user), truth.likes().keys()
    wanted = min(LIMIT, len(there - liked))
    if answer["user_id"] != user:
        yield f"it is for user {answer['user_id']}"
    if answer["source"] != "personal":
        yield f"source is {answer['source']} instead of personal"
    if answer["run_id"] not in truth.live() or answer["variant"] not in VARIANTS:
        yield f"run {answer['run_id']} of {answer['variant']} is not live"
    if len(posts) != wanted:
        yield f"{len(posts)} posts instead of {wanted}"
    if liked.intersection(posts):
        yield f"the user has liked {sorted(liked.intersection(posts))} before"
    if not there >= set(posts):
        yield f"there are no posts {sorted(set(posts) - there)} to be served"
    if scores != sorted(scores, reverse=True):
        yield "the best score is not first"
    yield from _wrong_order(rows)


def wrong_in_fallback(answer: Answer, truth: Truth) -> Iterator[str]:
    """Tell what is wrong with what somebody unknown gets."""
    if answer["source"] != "popular":
        yield f"source is {answer['source']} instead of popular"
    yield from wrong_in_popular(answer, truth)


def wrong_in_popular(answer: Answer, truth: Truth) -> Iterator[str]:
    """Tell what is wrong with the popular list; posts with equal likes may stand in any order."""
    likes = truth.likes()
    found = [likes.get(row["post_id"], -1) for row in answer["recommendations"]]
    if found != list(likes.values())[:LIMIT]:
        yield f"posts with {found} likes instead of the most liked, {list(likes.values())[:LIMIT]}"
    yield from _wrong_order(answer["recommendations"])


def wrong_for_existing_client(answer: Answer, served: Answer, truth: Truth) -> Iterator[str]:
    """Tell what is wrong with the answer that existing clients get, beside the feed of the same user."""
    if set(answer) != {"exp_group", "recommendations"} or answer["exp_group"] != served["variant"]:
        yield f"fields {sorted(answer)}, exp_group {answer['exp_group']}"
    posts = [row["id"] for row in answer["recommendations"]]
    if posts != [row["post_id"] for row in served["recommendations"]]:
        yield "other posts than in the user's feed"
    words = truth.words(posts)
    for row in answer["recommendations"]:
        if (row["text"] or "", row["topic"] or "") != words.get(row["id"]):
            yield f"text or topic of post {row['id']} is not the one in Postgres"


def wrong_in_problem(answer: Answer) -> Iterator[str]:
    """Tell whether a refused request is told what was wrong with it."""
    if answer["status"] != 400 or "limit" not in json.dumps(answer):
        yield "it does not name the parameter `limit`"


def _wrong_order(rows: list[Answer]) -> Iterator[str]:
    ranks = [row["rank"] for row in rows]
    if len({row["post_id"] for row in rows}) != len(rows):
        yield "a post stands twice"
    if ranks != sorted(set(ranks)) or (ranks and ranks[0] < 1):
        yield f"ranks are {ranks}"


def _printed(answer: Answer) -> str:
    """Lay out an answer with a line for each field and each recommendation; long texts are cut."""
    lines = []
    for name, value in _shortened(answer).items():
        if isinstance(value, list):
            rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in value)
            lines.append(f"  {json.dumps(name)}: [\n{rows}\n  ]")
        else:
            lines.append(f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}"


def _shortened(value: Any) -> Any:
    """Cut long texts, for printing."""
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        return value[:SHOWN_CHARACTERS] + "..."
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    if isinstance(value, dict):
        return {name: _shortened(each) for name, each in value.items()}
    return value


LIMIT = 5
CANDIDATES = 5000

LIKES_OF_USERS = sa.text("""
    SELECT user_id, count(DISTINCT post_id) AS likes FROM recs.interactions
    WHERE action = 'like' AND user_id = ANY(:users)
    GROUP BY user_id ORDER BY user_id
""")


@dataclass(frozen=True)
class Examples:
    """Requests with real values.

    Attributes
    ----------
    user
        A user who has a list and has liked something, and not nearly everything.
    unknown
        An id that no user has.
    """

    user: int
    unknown: int

    @property
    def personal(self) -> str:
        """The feed of a known user."""
        return f"/users/{self.user}/recommendations?limit={LIMIT}"

    @property
    def fallback(self) -> str:
        """The feed of somebody unknown."""
        return f"/users/{self.unknown}/recommendations?limit={LIMIT}"

    @property
    def popular(self) -> str:
        """What is liked most."""
        return f"/posts/popular?limit={LIMIT}"

    @property
    def existing_client(self) -> str:
        """The request of the clients that this network already has."""
        return f"/post/recommendations/?id={self.user}&time=2021-12-29T21:00:00&limit={LIMIT}"

    @property
    def bad(self) -> str:
        """A request that cannot be answered."""
        return f"/users/{self.user}/recommendations?limit=0"


def choose_examples(engine: sa.Engine, client: redis.Redis, keys: Keys) -> Examples:
    """Pick the users to try.

    Raises
    ------
    DemoError
        If no user has both a list and a like.
    """
    run_id = str(client.get(keys.live(CONTROL)))
    begin = keys.user(run_id, 0).removesuffix("0")
    found = islice(client.scan_iter(match=f"{begin}*", count=CANDIDATES), CANDIDATES)
    candidates = [int(str(key).removeprefix(begin)) for key in found]
    with engine.connect() as connection:
        posts = connection.scalar(sa.text("SELECT count(*) FROM recs.posts")) or 0
        last = connection.scalar(sa.text("SELECT max(user_id) FROM recs.users")) or 0
        likes = connection.execute(LIKES_OF_USERS, {"users": candidates}).all()
    for user, liked in likes:
        if liked + LIMIT <= posts:
            return Examples(user, last + 1)
    raise DemoError(f"none of {len(candidates)} users with a list in {run_id} has liked a post")


def print_examples(examples: Examples, address: str, option: str) -> None:
    """Print what to type, ready to copy; `option` names the network for `python -m demo exec`."""
    python = _python()
    lines = [
        ("a user's feed", f"curl -s '{address}{examples.personal}'"),
        ("an unknown user gets what is popular", f"curl -s '{address}{examples.fallback}'"),
        ("what is popular", f"curl -s '{address}{examples.popular}'"),
        ("what existing clients ask, answered with texts", f"curl -s '{address}{examples.existing_client}'"),
        (
            "the same list where it is kept",
            f"{python} -m demo exec{option} -- {python} -m batch lookup {examples.user}",
        ),
        ("the runs so far", f"{python} -m demo exec{option} -- {python} -m batch runs"),
    ]
    click.echo(f"\nReady on {address}. Things to try in another terminal:\n")
    for title, command in lines:
        click.echo(f"  # {title}\n  {command}\n")
    click.echo("Ctrl-C stops everything; the data stays.")


def _python() -> str:
    program = Path(sys.executable)
    return str(program.relative_to(ROOT)) if program.is_relative_to(ROOT) else str(program)


POST_TYPES = OPTIONAL[columns.POSTS]
LIKED = sa.text("SELECT post_id FROM recs.interactions WHERE action = 'like' AND user_id = :user")
LIKES = """
    SELECT post_id, {like_count} AS likes FROM recs.posts WHERE {like_count} IS NOT NULL
    UNION ALL
    SELECT post_id, coalesce(logged, 0) FROM recs.posts LEFT JOIN (
        SELECT post_id, count(*) AS logged FROM recs.interactions
        WHERE action = 'like' AND user_id IN (SELECT user_id FROM recs.users) GROUP BY post_id
    ) AS counted USING (post_id) WHERE {like_count} IS NULL
    ORDER BY 2 DESC, 1
"""
"""The network's own counter of a post, and where it has none the likes that are logged."""

WORDS = """
    SELECT post_id, coalesce({text}, ''), coalesce({topic}, '') FROM recs.posts WHERE post_id = ANY(:posts)
"""


@dataclass(frozen=True)
class Truth:
    """What the servers hold, read anew each time."""

    engine: sa.Engine
    client: redis.Redis
    keys: Keys

    def liked(self, user: int) -> set[int]:
        """Return the posts that the user has liked."""
        with self.engine.connect() as connection:
            return set(connection.scalars(LIKED, {"user": user}))

    def likes(self) -> dict[int, int]:
        """Return the likes of every post that may be served, the most liked first."""
        blocked = self.blocked()
        with self.engine.connect() as connection:
            found = connection.execute(_fill_in(connection, LIKES))
            return {post: likes for post, likes in found if post not in blocked}

    def words(self, posts: list[int]) -> dict[int, tuple[str, str]]:
        """Return text and topic of posts, empty where there is none."""
        with self.engine.connect() as connection:
            found = connection.execute(_fill_in(connection, WORDS), {"posts": posts})
            return {post: (text, topic) for post, text, topic in found}

    def stored(self, key: str) -> Ranked:
        """Return the list under a key; empty if there is none."""
        value = self.client.get(key)
        return [] if value is None else decode_list(str(value))

    def blocked(self) -> set[int]:
        """Return the posts never to be served."""
        return {int(post) for post in self.client.smembers(self.keys.blocked)}

    def live(self) -> set[str]:
        """Return the runs that are served."""
        return {str(self.client.get(self.keys.live(variant))) for variant in VARIANTS}


def _fill_in(connection: sa.Connection, query: str) -> sa.TextClause:
    """Fill in the optional columns of the posts' view: their names, or NULL where the network has none."""
    there = check_views(connection).posts
    names = {name: name if name in there else f"NULL::{types[0]}" for name, types in POST_TYPES.items()}
    return sa.text(query.format_map(names))
