"""The network's app as a browser has it: requests, cookies, and what its pages show."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.client import HTTPException
from http.cookiejar import CookieJar
from urllib.error import HTTPError
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import HTTPCookieProcessor, ProxyHandler, Request, build_opener

from contract.addresses import is_loopback
from contract.errors import OvernightError
from demo.processes import DemoUsageError

REQUEST_SECONDS = 15
MAX_REQUESTS_PER_SECOND = 30
BY_SCRIPT = {"HX-Request": "true"}
Fields = Sequence[tuple[str, str]]


class NotAnsweredError(OvernightError):
    """Raised when the app does not answer, or answers with an error."""


@dataclass
class Card:
    """A post on a page.

    Attributes
    ----------
    post
        Its id, as text.
    link
        Address of its page.
    """

    post: str
    community: str | None = None
    link: str | None = None


@dataclass
class Form:
    """A form: where it is sent, and its hidden fields."""

    action: str
    fields: list[tuple[str, str]] = field(default_factory=list)


class Page(HTMLParser):
    """What a page shows.

    Attributes
    ----------
    more
        Address of the older posts; None if there are none.
    source
        Where the list comes from: `personal` or `popular`; None if the page does not say.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cards: list[Card] = []
        self.forms: list[Form] = []
        self.more: str | None = None
        self.source: str | None = None
        self._in_community = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note cards, forms and links."""
        values = {name: value or "" for name, value in attrs}
        classes = values.get("class", "").split()
        if "data-post" in values:
            self.cards.append(Card(values["data-post"]))
        self.source = values.get("data-source", self.source)
        if tag == "form":
            self.forms.append(Form(values.get("action", "")))
        elif tag == "input" and values.get("type") == "hidden" and self.forms:
            self.forms[-1].fields.append((values.get("name", ""), values.get("value", "")))
        elif tag == "a" and values.get("rel") == "next":
            self.more = values.get("href")
        elif tag == "a" and self.cards and "community" in classes:
            self._in_community = True
        elif tag == "a" and self.cards and not classes and self.cards[-1].link is None:
            self.cards[-1].link = values.get("href")

    def handle_endtag(self, tag: str) -> None:
        """Note where the name of a community ends."""
        if tag == "a":
            self._in_community = False

    def handle_data(self, data: str) -> None:
        """Note the name of a card's community."""
        if self._in_community:
            self.cards[-1].community = (self.cards[-1].community or "") + data


class Meter:
    """Counts requests of all threads and their seconds, and keeps them below a rate."""

    def __init__(self, max_per_second: float = MAX_REQUESTS_PER_SECOND) -> None:
        self._interval = 1 / max_per_second
        self._lock = threading.Lock()
        self._next = 0.0
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.failures: dict[str, int] = defaultdict(int)

    def wait(self) -> None:
        """Wait until the next request may be sent."""
        with self._lock:
            now = time.monotonic()
            slot = max(now, self._next)
            self._next = slot + self._interval
        time.sleep(slot - now)

    def note(self, kind: str, seconds: float) -> None:
        """Count a request that was answered."""
        with self._lock:
            self.seconds[kind].append(seconds)

    def note_failure(self, reason: str) -> None:
        """Count a request without an answer of use."""
        with self._lock:
            self.failures[reason] += 1


class Browser:
    """A browser with cookies of its own, so that what it does is one visit."""

    def __init__(self, url: str, meter: Meter) -> None:
        self._url, self._meter = url, meter
        self._opener = build_opener(ProxyHandler({}), HTTPCookieProcessor(CookieJar()))

    def get(self, kind: str, address: str, *, by_script: bool = False) -> Page:
        """Open a page of the app.

        Parameters
        ----------
        kind
            What the meter counts it as.
        by_script
            Whether a part of a page is wanted, as htmx asks for it.

        Raises
        ------
        NotAnsweredError
        """
        return Page(self._send(kind, Request(self._resolve(address), headers=BY_SCRIPT if by_script else {})))

    def post(self, kind: str, address: str, fields: Fields, *, by_script: bool = False) -> Page:
        """Send a form and return the page after it; parameters and errors as those of `get`."""
        headers = {"Origin": self._url, "Sec-Fetch-Site": "same-origin"} | (BY_SCRIPT if by_script else {})
        body = urlencode(list(fields)).encode()
        return Page(self._send(kind, Request(self._resolve(address), body, headers)))

    def _resolve(self, address: str) -> str:
        url = urljoin(f"{self._url}/", address)
        if not url.startswith(f"{self._url}/"):
            raise NotAnsweredError(f"a page has a link to {urlsplit(url).hostname}")
        return url

    def _send(self, kind: str, request: Request) -> str:
        self._meter.wait()
        started = time.monotonic()
        try:
            with self._opener.open(request, timeout=REQUEST_SECONDS) as answer:
                text: str = answer.read().decode()
        except HTTPError as error:
            with error:
                reason = f"{kind}: status {error.code}"
        except (OSError, HTTPException) as error:
            reason = f"{kind}: {getattr(error, 'reason', error) or type(error).__name__}"
        else:
            self._meter.note(kind, time.monotonic() - started)
            return text
        self._meter.note_failure(reason)
        raise NotAnsweredError(reason)


def check_loopback(url: str) -> str:
    """Return the base URL of an app on this machine, without a trailing slash.

    Raises
    ------
    DemoUsageError
        It is another machine's, or no URL.
    """
    with suppress(ValueError):  # of urlsplit, and of an invalid port
        parts = urlsplit(url)
        base = f"http://{parts.netloc}"
        if url in (base, f"{base}/") and parts.port != 0 and "@" not in base and is_loopback(parts.hostname):
            return base
    raise DemoUsageError(
        f"{url!r} is not an address of this machine such as http://127.0.0.1:8001; nothing was sent"
    )
