"""Helpers for tests of the console in a real browser: its processes, and pages that notice every problem."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from demo.gunicorn import http_get
from demo.processes import free_port
from tests.support.batch import wait_until
from tests.support.gunicorn import COMMAND, ROOT, gunicorn, stop
from tests.support.operators import LiveNetwork

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request, Response

CHROMIUM = "/usr/bin/chromium"
OPERATOR = "anna"
"""Name of the operator that everybody is who opens the console of `LiveConsole`."""

NARROW, WIDE = {"width": 320, "height": 700}, {"width": 1280, "height": 900}
MAX_ROWS = 5
"""Rows of a table that axe looks at: they are alike, and each takes it a while."""

SERIOUS = ("serious", "critical")


@dataclass(frozen=True)
class LiveConsole:
    """A console that may act, and serving, over a network after a night.

    Attributes
    ----------
    night
        The network; its database and Redis are those that the console and serving use.
    url, serving_url
        Addresses without a trailing slash.
    log
        What the console logs.
    """

    night: LiveNetwork
    url: str
    serving_url: str
    log: Path


def environment(night: LiveNetwork, **variables: str) -> dict[str, str]:
    """Return the environment of a process over a network."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("OVERNIGHT_")},
        "DATABASE_URL": night.database_url,
        "REDIS_URL": night.redis_url,
        "OVERNIGHT_MODEL_DIR": str(night.model_dir),
        "OVERNIGHT_THREADS": "1",
        "OVERNIGHT_TOP_N": str(night.top_n),
        "PYTHONPATH": str(ROOT),
    } | variables


@contextmanager
def run_console(night: LiveNetwork, folder: Path, **variables: str) -> Iterator[str]:
    """Run `python -m console` over a network, from another folder; yield its address.

    Its log goes to `console-PORT.log` in `folder`. `variables` are settings, such as
    `OVERNIGHT_CONSOLE_READ_ONLY`.
    """
    port = free_port()
    variables = {"OVERNIGHT_CONSOLE_PORT": str(port)} | variables
    with (folder / f"console-{port}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "console"], cwd=folder, env=environment(night, **variables), stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or is_up(url))
        assert process.returncode is None, (folder / f"console-{port}.log").read_text()
        yield url
    finally:
        stop(process)


def is_up(url: str) -> bool:
    """Return whether an app answers that it is alive."""
    try:
        return http_get(f"{url}/healthz").status == 200
    except OSError:
        return False


@contextmanager
def run_live_console(night: LiveNetwork, folder: Path) -> Iterator[LiveConsole]:
    """Run serving, and a console whose visitors are the operator `OPERATOR`."""
    port = free_port()
    serving_url = f"http://127.0.0.1:{port}"
    with (
        gunicorn(night.redis_url, port, folder / "serving.log", command=COMMAND, OVERNIGHT_WORKERS="1"),
        run_console(
            night,
            folder,
            OVERNIGHT_CONSOLE_READ_ONLY="off",
            OVERNIGHT_CONSOLE_LOCAL_OPERATOR=OPERATOR,
            OVERNIGHT_CONSOLE_SERVING_URL=serving_url,
        ) as url,
    ):
        yield LiveConsole(night, url, serving_url, folder / f"console-{urlsplit(url).port}.log")


@dataclass
class Problems:
    """What a page did that no page may do: console errors, failed requests, answers of 5xx.

    A violation of the content security policy is a console error.
    """

    found: list[str] = field(default_factory=list)
    _allowed: list[str] = field(default_factory=list)

    def allow(self, pattern: str) -> None:
        """Allow problems in which a regular expression is found, from now on and up to now."""
        self._allowed.append(pattern)

    def watch(self, page: Page) -> None:
        """Collect the problems of a page."""
        page.on("console", lambda message: message.type == "error" and self.found.append(message.text))
        page.on("pageerror", lambda error: self.found.append(f"script: {error}"))
        page.on("requestfailed", self._note_failure)
        page.on("response", self._note_answer)

    def check(self) -> None:
        """Check that there was none but those allowed."""
        allowed = [re.compile(pattern) for pattern in self._allowed]
        assert [line for line in self.found if not any(each.search(line) for each in allowed)] == []

    def _note_failure(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left meanwhile
            self.found.append(f"{request.method} {request.url}: {request.failure}")

    def _note_answer(self, response: Response) -> None:
        if response.status >= 500:
            self.found.append(f"{response.url}: status of {response.status}")


def check_accessible(page: Page) -> None:
    """Check the page by axe: nothing serious, and in dark colours enough contrast.

    Of a long table the first rows are checked; the others are hidden meanwhile.
    """
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate(Axe().axe_script)
    page.evaluate(HIDE_ROWS, True)
    found: list[str] = []
    colours_only = {"resultTypes": ["violations"], "runOnly": ["color-contrast"]}
    for scheme, options in (("dark", colours_only), ("light", {"resultTypes": ["violations"]})):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        answer = page.evaluate("options => axe.run(options)", options)
        violations: list[Mapping[str, Any]] = answer["violations"]
        found += [
            f"{page.url} ({scheme}): {each['help']}: {[node['html'][:200] for node in each['nodes']]}"
            for each in violations
            if each["impact"] in SERIOUS
        ]
    page.evaluate(HIDE_ROWS, False)
    assert found == [], "\n".join(found)


HIDE_ROWS = f"""hidden => {{
    document.querySelectorAll("tbody tr:nth-child(n+{MAX_ROWS + 1})").forEach(row => row.hidden = hidden);
}}"""


def check_fits(page: Page) -> None:
    """Check that a page 320 px wide needs no scrolling sideways."""
    page.set_viewport_size(NARROW)  # type: ignore[arg-type]
    width = page.evaluate("document.documentElement.scrollWidth")
    wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > 321 "
        "&& !e.closest('.wide')).map(e => e.outerHTML.slice(0, 120)).slice(0, 5)"
    )
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    assert width <= NARROW["width"], f"{page.url} is {width} px wide: {wide}"


LINK = re.compile(r'(?:href|src|action)="([^"#]*)')
MAX_CRAWLED = 200


def crawl(page: Page, start: str, inside: str, *more: str) -> list[str]:
    """Follow every link from a page, as its visitor; check each answer, and that no link leaves `inside`.

    Pages of a kind, such as those of users, are asked for a few times each.

    Returns
    -------
    list of str
        Addresses of the pages found, the first ones of each kind.
    """
    waiting, seen, pages, kinds = [start, *more], {start, *more}, [], Counter[str]()
    while waiting:
        url = waiting.pop(0)
        answer = page.request.get(url, max_redirects=0)
        impossible = "/actions/" in url and answer.status == 409  # such as a webhook that is not set
        assert answer.status in {200, 302} or impossible, f"{url}: {answer.status}"
        if answer.status != 200 or "text/html" not in answer.headers["content-type"]:
            continue
        if "sandbox" not in answer.headers["content-security-policy"]:  # a report, which is shown in a frame
            pages.append(url)
        for link in LINK.findall(answer.text()):
            found = urljoin(url, html.unescape(link))
            assert found.startswith(inside), f"{url} links to {found}"
            kind = re.sub(r"[^/?&]*\d[^/?&]*|=[^&]*", "*", found)
            if found in seen or kinds[kind] >= 2 or _is_form(answer.text(), link):
                continue
            kinds[kind] += 1
            seen.add(found)
            waiting.append(found)
    assert len(seen) < MAX_CRAWLED, sorted(kinds)
    return pages


KIND = re.compile(r"(?<=^/c/).*|[^/]*\d[^/]*")
"""What differs between the paths of pages of a kind."""


def pick_of_each_kind(pages: Iterable[str]) -> list[str]:
    """Return the first page of each kind, such as one of a user."""
    return list({KIND.sub("*", urlsplit(each).path): each for each in reversed([*pages])}.values())


def _is_form(text: str, link: str) -> bool:
    return re.search(rf'<form [^>]*method="post" action="{re.escape(link)}"', text) is not None


def check_keyboard(page: Page) -> None:
    """Check that the tab key reaches everything, and that what has focus is seen to have it."""
    wanted = page.evaluate(f"[...document.querySelectorAll({TABBABLE!r})].filter({VISIBLE}).length")
    page.evaluate("document.activeElement.blur()")
    reached = set[int]()
    for _ in range(3 * wanted):  # a busy browser loses some
        if len(reached) == wanted:
            break
        page.keyboard.press("Tab")
        found = page.evaluate(FOCUSED)
        if found is None or found[0] in {-1, *reached}:
            continue
        assert found[1] != "none", f"{page.url}: no focus is seen on {found[2]}"
        reached.add(found[0])
    assert len(reached) == wanted, f"{page.url}: the tab key reaches {len(reached)} of {wanted}"


TABBABLE = 'a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex="0"]'
VISIBLE = "e => e.checkVisibility() && !e.disabled"
FOCUSED = f"""(() => {{
    const e = document.activeElement;
    if (e === document.body) return null;
    const all = [...document.querySelectorAll({TABBABLE!r})];
    return [all.indexOf(e), getComputedStyle(e).outlineStyle, e.outerHTML.slice(0, 100)];
}})()"""
