"""Users: what one did last, what they get, and the same in another run."""

from __future__ import annotations

import json
from datetime import datetime
from functools import partial
from typing import Any

from flask import Blueprint, Response, abort, make_response, render_template, request

from batch.evaluation.recipe_choice import MEANING_OF_LIKES
from batch.formatting import format_count
from batch.inspection.user_profile import (
    MAX_COUNTED,
    UserCounts,
    count_interactions,
    find_refreshed_at,
    read_interactions,
    read_user,
)
from batch.redis_client import live_run_ids
from batch.reports.bars import Bar, draw_bars
from batch.runs import ledger
from batch.runs.pages import read_live_since
from console.content.explanations import ExplainRequest, find_job, name_reasons, read_answers, why_url
from console.content.user_tables import (
    BEFORE,
    comparison_table,
    list_table,
    parse_start,
    read_comparison,
    read_interaction_rows,
    read_kinds,
    read_user_list,
)
from console.context import Console, current_console, now
from console.links import parse_written_id, user_url
from console.tables import PAGE_ROWS, absent_is_404
from contract.experiment import VARIANTS
from contract.ids import Id, IdKind
from contract.text import escape_json

FIRST_ROWS = 20
"""Rows of the list and of the interactions before one asks for more, which come by 50."""
MAX_RUNS = 20
"""Newest runs that a page offers to look at."""
MAX_TOPICS = 12
MAX_SHOWN = 150
"""Characters of a wrong id in an error."""
NO_TOPIC = "no topic, or the post is gone"

blueprint = Blueprint("users", __name__)


def parse_or_refuse(text: str, kind: IdKind, what: str) -> Id:
    """Parse an id of a request; one of another kind than the network's is answered with 400.

    Parameters
    ----------
    what
        `user` or `post`.
    """
    try:
        return parse_written_id(text, kind)
    except ValueError as error:
        sentence = f'"{text[:MAX_SHOWN]}" cannot be the id of a {what}: it {error}. Nothing was looked up.'
        page = render_template("error.html", title=f"Not the id of a {what}", sentence=sentence)
        abort(make_response(page, 400))


@blueprint.get("/users")
@blueprint.get("/users/<user_id>")
def user(user_id: str | None = None) -> str:
    """Show a user; without one, ask for an id."""
    console, arguments = current_console(), request.args
    text = arguments.get("id", "") if user_id is None else user_id
    if not text:
        return render_template("users.html")
    kinds = read_kinds(console)
    found = parse_or_refuse(text, kinds.users, "user")
    with absent_is_404():
        page = _read_page(console, found)
    return render_template("user.html", user_id=found, **page)


def _read_page(console: Console, user_id: Id) -> dict[str, Any]:
    """Return what the page of a user shows."""
    arguments, read, stores = request.args.to_dict(), console.readings.read, console.stores
    run, start = arguments.get("run", ""), parse_start(arguments)
    names = (arguments.get("a", ""), arguments.get("b", ""))
    listed = read(("user-list", user_id, run), lambda: read_user_list(console, user_id, run))
    page: dict[str, Any] = {"listed": listed, "run": run, "start": start, "compared": None, "job": None}
    if listed.value is not None and listed.at is not None:
        run_id = listed.value.served.run_id
        count = PAGE_ROWS if "from" in arguments else FIRST_ROWS
        page |= {"list": list_table(listed.value, run, start, listed.at, count=count)}
        job = find_job(console, ExplainRequest.of_page(listed.value, start))
        page |= {
            "why_link": partial(why_url, listed.value, start),
            "job": job,
            "reasons": name_reasons(read_answers(job)),
            "refreshed": read(
                ("refreshed", user_id, run_id), lambda: find_refreshed_at(stores, run_id, user_id)
            ),
        }
    if all(names):
        page["names"] = names
        page["compared"] = compared = read(
            ("user-comparison", user_id, *names), lambda: read_comparison(console, user_id, *names)
        )
        if compared.value is not None and compared.at is not None:
            page["comparison"] = comparison_table(compared.value, names, start, compared.at)
    before = {name: arguments[name] for name in BEFORE if name in arguments}
    history = {"id": str(user_id), **before}
    counts = read(("user-counts", user_id), lambda: count_interactions(stores, user_id))
    return page | {
        "link": partial(user_url, user_id),
        "profile": read(("user", user_id), lambda: read_user(stores, user_id)),
        "history": read(
            ("user-interactions", *history.values()),
            lambda: read_interaction_rows(console, history, PAGE_ROWS if before else FIRST_ROWS),
        ),
        "before": before,
        "counts": counts,
        "topics": _draw_topics(counts.value) if counts.value else "",
        "max_counted": MAX_COUNTED,
        "live_since": read("live-since", lambda: read_live_since(stores.engine, stores.keys.prefix)).value
        or {},
        "runs": read("kept-runs", lambda: ledger.kept_runs(stores.engine, stores.keys.prefix, MAX_RUNS)),
        "variants": VARIANTS,
        "meaning_of_likes": MEANING_OF_LIKES,
    }


def _draw_topics(counts: UserCounts) -> str:
    """Draw the likes by topic as bars; topics after the first MAX_TOPICS together."""
    named, rest = counts.topics[:MAX_TOPICS], counts.topics[MAX_TOPICS:]
    bars = [Bar(topic or NO_TOPIC, likes, f"{likes:,}") for topic, likes in named]
    if rest:
        likes = sum(likes for _, likes in rest)
        bars.append(Bar(format_count(len(rest), "more topic"), likes, f"{likes:,}"))
    words = ", ".join(f"{bar.label}: {bar.text}" for bar in bars)
    return draw_bars("topics", "Posts that the user likes, by topic", words, bars) if bars else ""


@blueprint.get("/user-data")
def data() -> Response:
    """Answer one JSON document of what the network and the lists have about a user."""
    console = current_console()
    stores = console.stores
    user_id = parse_or_refuse(request.args.get("id", ""), read_kinds(console).users, "user")
    with stores.readable_errors():
        counts = count_interactions(stores, user_id)
        interactions = read_interactions(stores, user_id, MAX_COUNTED, with_text=False)
        live = live_run_ids(stores.redis, stores.keys)
        lists = {
            run_id: read_user_list(console, user_id, run_id).served.as_dict(now()) for run_id in live.values()
        }
        document = {
            "user_id": user_id,
            "at": now(),
            "columns": read_user(stores, user_id),
            "counts": vars(counts),
            "interactions": [
                {"post_id": each.post_id, "action": each.action, "happened_at": each.happened_at}
                for each in interactions
            ],
            "older_interactions_left_out": counts.capped,
            "lists": lists,
        }
    answer = Response(
        escape_json(json.dumps(document, ensure_ascii=False, default=_format_time)),
        content_type="application/json; charset=utf-8",
    )
    answer.headers["Content-Disposition"] = 'inline; filename="user.json"'
    return answer


def _format_time(value: datetime) -> str:
    return value.isoformat(timespec="seconds")
