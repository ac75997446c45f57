"""Who looks at a page: users of the settings who sign in, or everybody on a loopback address."""

from __future__ import annotations

from flask import Flask, g

from console.context import Visitor
from contract.settings import OPERATOR, VIEWER, Settings

LOCAL = "local"
"""Name of a visitor where nobody signs in."""


def add_sign_in(app: Flask, settings: Settings) -> None:
    """Set the visitor of each request."""

    def find_visitor() -> None:
        name = settings.console.local_operator
        g.visitor = Visitor(name, OPERATOR) if name else Visitor(LOCAL, VIEWER)

    app.before_request(find_visitor)
