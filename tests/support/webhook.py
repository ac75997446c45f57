"""A webhook in a thread, for the tests of alerts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET_PATH = "services/T0KEN/hush-hush"


@dataclass
class Webhook:
    """What a webhook received, and how it answers.

    Attributes
    ----------
    posts
        Received bodies, in order.
    answers
        Status codes of the next answers, in order; 200 when none is left.
    may_answer
        Requests are answered only while this is set.
    """

    url: str
    posts: list[dict[str, Any]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    may_answer: threading.Event = field(default_factory=threading.Event)

    @property
    def events(self) -> list[str]:
        """Received events, in order."""
        return [post["event"] for post in self.posts]


@contextmanager
def listening() -> Iterator[Webhook]:
    """Run a webhook on a free local port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            webhook.posts.append(json.loads(body))
            webhook.may_answer.wait()
            status = webhook.answers.pop(0) if webhook.answers else 200
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            webhook.posts.append({"event": "GET"})
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        webhook = Webhook(f"http://127.0.0.1:{server.server_address[1]}/{SECRET_PATH}")
        webhook.may_answer.set()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield webhook
        finally:
            webhook.may_answer.set()
            server.shutdown()
            thread.join()
