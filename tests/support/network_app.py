"""Helpers for tests of the demo's network: its processes, and what a newcomer does first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.processes import free_port
from tests.support.batch import query, wait_until
from tests.support.browser import environment, is_up
from tests.support.gunicorn import COMMAND, SCRIPT, gunicorn
from tests.support.operators import LiveNetwork

if TYPE_CHECKING:
    from playwright.sync_api import Page

APP = [SCRIPT, "-c", "demo/network_app/gunicorn.conf.py", "demo.network_app.wsgi:app"]
PASSWORD = "correct horse"
MANY_REGISTRATIONS = 1_000
"""The tests of a session register from one address, and within an hour."""


@dataclass(frozen=True)
class LivingNetwork:
    """The network's app and serving, over a simulated network after a night.

    Attributes
    ----------
    night
        The network: its database, its Redis, its models.
    url, serving_url
        Addresses without a trailing slash.
    log
        What the app logs.
    """

    night: LiveNetwork
    url: str
    serving_url: str
    log: Path

    @property
    def database_url(self) -> str:
        return self.night.database_url

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        return query(self.database_url, statement)

    def refresh(self) -> None:
        """Make the lists anew of people who did something, as the scheduler does; in this process."""
        done = self.night.batch("refresh")
        assert done.returncode == 0, done.stderr

    def find_user(self, name: str) -> Any:
        """Return the id of the person who registered under a name."""
        ((user_id,),) = self.query(f"SELECT user_id FROM account WHERE name = '{name}'")
        return user_id


@contextmanager
def run_network_app(night: LiveNetwork, folder: Path, **variables: str) -> Iterator[LivingNetwork]:
    """Run serving, which notes exposures, and the app; `variables` are settings of the app."""
    serving_port, port = free_port(), free_port()
    url, serving_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{serving_port}"
    log = folder / "network-app.log"
    own = environment(
        night,
        NETWORK_APP_PORT=str(port),
        NETWORK_APP_SERVING_URL=serving_url,
        NETWORK_APP_FOLDER=str(folder),
        NETWORK_APP_MAX_REGISTRATIONS=str(MANY_REGISTRATIONS),
    )
    serving = environment(night, OVERNIGHT_EXPOSURES="on", OVERNIGHT_WORKERS="1")
    with (
        gunicorn(night.redis_url, serving_port, folder / "serving.log", command=COMMAND, **serving),
        gunicorn(night.redis_url, port, log, command=APP, **own | variables) as process,
    ):
        wait_until(lambda: process.poll() is not None or is_up(url))
        assert process.returncode is None, log.read_text()
        wait_until(lambda: is_up(serving_url))
        yield LivingNetwork(night, url, serving_url, log)


def register(page: Page, network: LivingNetwork, name: str, /, **profile: str) -> Any:
    """Register a person, who is then on the page /welcome; return their id.

    `profile` has values of columns of the table "user", such as `country="Russia"`; the other ones stay
    empty.
    """
    page.goto(f"{network.url}/register")
    page.locator("#register [name=name]").fill(name)
    page.locator("#register [name=password]").fill(PASSWORD)
    for column, value in profile.items():
        field = page.locator(f'#register [name="profile.{column}"]')
        if field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)
    page.get_by_role("button", name="Register").click()
    page.wait_for_url("**/welcome")
    return network.find_user(name)


def sign_in(page: Page, network: LivingNetwork, name: str) -> None:
    """Sign in a person who registered, in another page or browser."""
    page.goto(f"{network.url}/sign-in")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{network.url}/")


def pick_likes(page: Page, count: int) -> list[str]:
    """Like the first posts of the page that are not liked yet; return their ids as text."""
    liked = []
    for _ in range(count):
        button = page.locator("button.like[aria-pressed=false]").first
        post = button.locator("xpath=ancestor::form").locator("[name=post]").get_attribute("value")
        button.click()
        page.locator(f'form.like:has([name=post][value="{post}"]) button[aria-pressed=true]').wait_for()
        liked.append(str(post))
    return liked
