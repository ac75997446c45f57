"""Take pictures of a newcomer's first five minutes in the network of a running demo.

In another terminal than `make demo`, with playwright (requirements-dev.txt) and a chromium:

    .venv/bin/python -m benchmarks.newcomer FOLDER

registers a person, likes posts, waits for refreshes, and writes a picture of each step, `01-register.png` and
so on. It prints the seconds from the last like to the changed list. The pictures in docs/network are made so.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from batch.files import write_atomically
from batch.formatting import echo
from benchmarks.screenshots import CHROMIUM, reduce_colours
from demo.network_app.config import Config

if TYPE_CHECKING:
    from playwright.sync_api import Page

WIDTH, HEIGHT = 800, 900
COMMUNITY = "movie"
"""What the newcomer likes, if the network has it; else the first community."""

REFRESH_SECONDS = 180
PROFILE = {"age": "27", "country": "Russia", "gender": "1"}


@dataclass
class Recorder:
    """Writes the picture of each step of a visit."""

    page: Page
    url: str
    folder: Path
    steps: int = field(default=0, init=False)

    def take(self, name: str, *, top: str = "") -> None:
        """Take the picture of a step: the first screen, or what begins at the element `top`."""
        self.steps += 1
        if top:
            self.page.locator(top).evaluate("element => element.scrollIntoView()")
        else:
            self.page.evaluate("scrollTo(0, 0)")
        path = self.folder / f"{self.steps:02}-{name}.png"
        write_atomically(path, reduce_colours(self.page.screenshot()))
        echo(f"{path}")


def main() -> None:
    """Register, like, wait and look; take a picture of each step."""
    options = parse_arguments()
    from playwright.sync_api import sync_playwright

    options.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
        recorder = Recorder(context.new_page(), options.url, options.folder)
        name = f"{options.name} {time.strftime('%H:%M:%S')}"
        register(recorder, name)
        show_feed(recorder)
        look_around(recorder)
        browser.close()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.newcomer", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("newcomer"))
    parser.add_argument("--url", default=f"http://127.0.0.1:{Config.from_environment().port}")
    parser.add_argument("--name", default="Mira", help="of the newcomer; the time is added")
    parser.add_argument("--chromium", default=CHROMIUM, help="the browser's program")
    return parser.parse_args()


def register(recorder: Recorder, name: str) -> None:
    """Register, look at the popular posts that the first feed has, and like three."""
    page = recorder.page
    page.goto(f"{recorder.url}/register")
    page.locator("#register [name=name]").fill(name)
    page.locator("#register [name=password]").fill("a long password")
    for column, value in PROFILE.items():
        inputs = page.locator(f'#register [name="profile.{column}"]')
        if inputs.count() and inputs.evaluate("element => element.tagName") == "SELECT":
            inputs.select_option(value)
        elif inputs.count():
            inputs.fill(value)
    recorder.take("register")
    page.get_by_role("button", name="Register").click()
    page.wait_for_url("**/welcome")
    wanted = page.locator("article.card", has=page.locator(f"a.community:text-is('{COMMUNITY}')"))
    cards = wanted if wanted.count() >= 2 else page.locator("article.card")
    for number in range(min(cards.count(), 2)):
        like(page, cards.nth(number).get_attribute("data-post"))
    recorder.take("welcome")


def show_feed(recorder: Recorder) -> None:
    """Look at the popular posts, wait for the list of one's own, like, and see what changes."""
    page = recorder.page
    page.goto(f"{recorder.url}/")
    recorder.take("first-feed")
    wait_for_new_list(recorder, "registration", picture="made-anew")
    recorder.take("personal")
    for _ in range(3):
        like(page, page.locator("article.card:not(:has(.liked))").first.get_attribute("data-post"))
    page.wait_for_selector("#strip .since strong")
    recorder.take("liked")
    wait_for_new_list(recorder, "like")
    page.wait_for_selector("#strip .changes")
    recorder.take("changed")


def look_around(recorder: Recorder) -> None:
    """Ask why a post is there, and open liked posts, a community and one's own page."""
    page = recorder.page
    page.locator("article.card h2 a").first.click()
    page.get_by_role("button", name="Ask the model").click()
    page.wait_for_selector("#explanation svg", timeout=REFRESH_SECONDS * 1000)
    recorder.take("post")
    recorder.take("account", top="#account")
    for name, title in (("liked", "Liked"), ("communities", "Communities"), ("me", "Me")):
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=title, exact=True).click()
        page.wait_for_url(f"**/{name}")
        recorder.take(name)


def like(page: Page, post_id: str | None) -> None:
    """Press the button of a post, and wait until it says Liked."""
    card = page.locator(f'article.card[data-post="{post_id}"]')
    card.get_by_role("button").click()
    card.locator("button.liked").wait_for()


def wait_for_new_list(recorder: Recorder, what: str, picture: str = "") -> None:
    """Wait until the strip says that the list was made anew, print after how long, and show the list."""
    started = time.monotonic()
    show = recorder.page.locator("#strip .news a")
    show.wait_for(timeout=REFRESH_SECONDS * 1000)
    echo(f"{time.monotonic() - started:.0f} s from the {what} to the new list")
    if picture:
        recorder.take(picture)
    show.click()
    recorder.page.wait_for_selector("#strip")


if __name__ == "__main__":
    main()
