"""Why a user gets a post, or does not: the parts of the score as bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from batch.inspection.feature_words import BASE, FACTORS, describe_value, has_other_score, name_feature
from console.content.explanations import ExplainRequest, draw_parts, find_job, name_reasons, read_answers
from console.content.user_tables import UserList, parse_start, read_kinds, read_user_list
from console.context import Console, current_console, current_visitor
from console.jobs import EXPLAIN, BusyError
from console.links import post_url, user_url
from console.pages.users import parse_or_refuse
from console.tables import Arguments, Column, Table, table_source
from contract.ids import Id

COLUMNS = (
    Column("words", "Feature in words"), Column("feature", "Feature"), Column("shown", "Value"),
    Column("value", "Value as the model uses it"), Column("contribution", "Adds", "number"),
)  # fmt: skip

blueprint = Blueprint("why", __name__)


@dataclass(frozen=True)
class _Request:
    """What an address of the page asks: a post of a user in a run; `start` is the first rank of the page."""

    user_id: Id
    post_id: Id
    run: str
    start: int

    @classmethod
    def parse(cls, console: Console, arguments: Arguments) -> _Request:
        kinds = read_kinds(console)
        return cls(
            parse_or_refuse(arguments.get("user", ""), kinds.users, "user"),
            parse_or_refuse(arguments.get("post", ""), kinds.posts, "post"),
            arguments.get("run", ""),
            parse_start(arguments),
        )

    def arguments(self, post_id: Id | None = None) -> dict[str, str]:
        """Return the query arguments; of another post of the list if one is given."""
        post = str(self.post_id if post_id is None else post_id)
        start = {"from": str(self.start)} if self.start > 1 else {}
        return {"user": str(self.user_id), "run": self.run, "post": post, **start}

    def url(self, post_id: Id | None = None) -> str:
        return url_for("why.why", **self.arguments(post_id))  # type: ignore[arg-type]


@blueprint.get("/why")
def why() -> str:
    """Show the parts of a score, or how far the job that computes them is."""
    console = current_console()
    return _show(console, _Request.parse(console, request.args.to_dict()))


@blueprint.post("/why")
def start() -> Response | tuple[str, int]:
    """Start the job that explains a page of a user's list, unless its result is there."""
    console, visitor, form = current_console(), current_visitor(), request.form.to_dict()
    asked = _Request.parse(console, form)
    with console.stores.readable_errors():
        found = read_user_list(console, asked.user_id, asked.run)
    wanted = ExplainRequest.of_page(found, asked.start, asked.post_id)
    job = find_job(console, wanted)
    if job is None or (not job.running and (form.get("again") or job.output is None)):
        try:
            console.jobs.start(EXPLAIN, wanted.arguments, visitor.name if visitor else "")
        except BusyError as error:
            return _show(console, asked, problem=f"Not started: {error}."), 503
    return redirect(asked.url(), 303)


def _show(console: Console, asked: _Request, problem: str = "") -> str:
    listed = console.readings.read(
        ("user-list", asked.user_id, asked.run), lambda: read_user_list(console, asked.user_id, asked.run)
    )
    page: dict[str, Any] = {
        "asked": asked, "listed": listed, "problem": problem, "job": None, "answer": None, "post": None,
        "back": user_url(asked.user_id, run=asked.run or None), "post_address": post_url(asked.post_id),
    }  # fmt: skip
    if listed.value is not None:
        job = find_job(console, ExplainRequest.of_page(listed.value, asked.start, asked.post_id))
        answers = read_answers(job)
        answer = answers.get(str(asked.post_id))
        page |= {"job": job, "answer": answer, **_find_neighbours(listed.value, asked.post_id)}
        if answer is not None and "error" not in answer and job is not None and job.ended_at is not None:
            page |= {
                "bars": draw_parts(answer),
                "reasons": name_reasons(answers)[str(asked.post_id)],
                "table_of_parts": _make_table(asked, answer, job.ended_at),
                "changed": has_other_score(answer),
            }
    return render_template("why.html", **page)


def _find_neighbours(found: UserList, post_id: Id) -> dict[str, Any]:
    """Return the post's row of the list, and the ids of its neighbours; None where there is none."""
    posts = found.served.posts
    at = next((index for index, post in enumerate(posts) if post["post_id"] == post_id), None)
    if at is None:
        return {"post": None, "previous": None, "following": None}
    return {
        "post": posts[at],
        "previous": posts[at - 1]["post_id"] if at else None,
        "following": posts[at + 1]["post_id"] if at + 1 < len(posts) else None,
    }


def _make_table(asked: _Request, answer: Mapping[str, Any], at: datetime) -> Table:
    rows = [
        part
        | {
            "words": name_feature(part["feature"], part["kind"]),
            "shown": describe_value(part["feature"], part["kind"], part["value"]),
        }
        for part in answer["contributions"]
    ]
    if answer["dot_product"] is not None:
        rows.append({"words": FACTORS, "contribution": answer["dot_product"]})
    rows.append({"words": BASE, "contribution": answer["base_value"]})
    caption = f"Parts of the score of post {asked.post_id} for user {asked.user_id}"
    return Table("score-parts", caption, COLUMNS, rows, at, asked.arguments())


@table_source("score-parts")
def read_parts_table(console: Console, arguments: Arguments) -> Table:
    """Return the parts of a score that a job has explained; a LookupError if none has."""
    asked = _Request.parse(console, arguments)
    found = read_user_list(console, asked.user_id, asked.run)
    job = find_job(console, ExplainRequest.of_page(found, asked.start, asked.post_id))
    answer = read_answers(job).get(str(asked.post_id))
    if job is None or job.ended_at is None or answer is None or "error" in answer:
        raise LookupError("nobody has asked for this explanation")
    return _make_table(asked, answer, job.ended_at)
