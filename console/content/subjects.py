"""What an action does, and on what, from its name and arguments: in words, with the address."""

from __future__ import annotations

from collections.abc import Mapping

from flask import url_for

from console.links import post_url, user_url

MAX_WORDS = 200
"""Characters of what an action does."""

JOB_ACTIONS = ("start-night", "refresh", "webhook")
"""Actions that start a job and act on nothing that has a page."""


WORDS: Mapping[str, str] = {
    "start-night": "start a night of {variant}", "refresh": "refresh the live lists",
    "stop-job": "stop the job", "doctor": "run the doctor", "webhook": "try the webhook",
    "roll-back": "roll the run back", "block": "block the post", "unblock": "unblock the post",
    "split": "change the split", "pin": "pin the user to {variant}", "unpin": "unpin the user",
}  # fmt: skip
"""Action -> what it does, in words; `{name}` stands for an argument."""

INPUTS: Mapping[str, str] = {
    "percent": "{} % of users in test", "name": "name {}", "salt": "salt {}", "days": "{} planned days",
}  # fmt: skip
"""Argument of a change of the split -> words."""


def describe_action(action: str, arguments: Mapping[str, str]) -> str:
    """Return what an action does, in words."""
    words = WORDS.get(action, action)
    for name, value in arguments.items():
        words = words.replace(f"{{{name}}}", value)
    if action == "split":
        given = [text.format(arguments[name]) for name, text in INPUTS.items() if arguments.get(name)]
    elif action in WORDS:
        given = []
    else:
        given = [f"{name} {value}" for name, value in arguments.items()]
    return f"{words}: {', '.join(given)}"[:MAX_WORDS] if given else words[:MAX_WORDS]


def subject_of(arguments: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the kind (`post`, `user`, `run` or `job`) and the id of what an action acts on; None without."""
    return next(
        ((name, arguments[name]) for name in ("post", "user", "run", "job") if arguments.get(name)), None
    )


def subject_url(action: str, arguments: Mapping[str, str]) -> str | None:
    """Return the address of what an action acts on; None if it has no page."""
    match subject_of(arguments):
        case "post", post_id:
            return post_url(post_id)
        case "user", user_id:
            return user_url(user_id)
        case "run", run_id:
            return url_for("runs.run", run_id=run_id)
        case "job", job_id:
            return url_for("jobs.job", job_id=job_id)
    if action in JOB_ACTIONS:
        return url_for("jobs.jobs")
    return {"split": url_for("experiment.experiment"), "doctor": url_for("doctor.doctor")}.get(action)
