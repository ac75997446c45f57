"""Error responses: application/problem+json (RFC 9457), never a traceback."""

from __future__ import annotations

import json
from http import HTTPStatus

from flask import Flask, Response
from werkzeug.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"


class ProblemError(Exception):
    """Raised when a request cannot be answered; becomes the response.

    `parameter` is the name of the invalid request parameter, if there is one.
    """

    def __init__(self, status: HTTPStatus, detail: str, parameter: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.parameter = parameter


def bad_parameter(name: str, must: str) -> ProblemError:
    """Return a 400 with the name of the parameter and what it must be.

    The value is not repeated: it may be long or confidential.
    """
    return ProblemError(HTTPStatus.BAD_REQUEST, f"{name} {must}", name)


def register_problems(app: Flask) -> None:
    """Answer every error of `app` with a problem, also the errors of Flask itself."""
    # Otherwise Flask re-raises errors when testing or debugging.
    app.config["PROPAGATE_EXCEPTIONS"] = False
    app.register_error_handler(ProblemError, _from_problem)
    app.register_error_handler(HTTPException, _from_http_exception)


def _from_problem(problem: ProblemError) -> Response:
    response = Response(status=problem.status)
    return _fill(response, problem.status.phrase, problem.detail, problem.parameter)


def _from_http_exception(error: HTTPException) -> Response:
    # The headers of the exception's own response are kept, such as Allow with a 405.
    response = Response(status=error.code, headers=error.get_response().headers.items())
    return _fill(response, error.name, error.description or error.name, None)


def encode_problem(status: int, title: str, detail: str, parameter: str | None = None) -> str:
    """Return the body of a problem response."""
    fields = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    if parameter is not None:
        fields["parameter"] = parameter
    return json.dumps(fields)


def _fill(response: Response, title: str, detail: str, parameter: str | None) -> Response:
    response.data = encode_problem(response.status_code, title, detail, parameter)
    response.content_type = MEDIA_TYPE
    response.cache_control.no_store = True
    return response
