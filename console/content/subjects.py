"""What an action acts on, from its arguments, and the address of that."""

from __future__ import annotations

from collections.abc import Mapping

from flask import url_for

from console.links import post_url, user_url

JOB_ACTIONS = ("start-night", "refresh", "webhook")
"""Actions that start a job and act on nothing that has a page."""


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
