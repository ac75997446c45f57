"""Makes the requests, prints what comes back, and holds it against Postgres and Redis."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from contract.codec import decode_object
from contract.experiment import VARIANTS
from demo.examples import LIMIT, Examples
from demo.processes import DemoError
from demo.truth import Truth
from demo.web import get

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
