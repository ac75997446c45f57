"""Messages between two people, each in a browser of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.browser import WIDE, Problems
from tests.support.network_app import LivingNetwork, register

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest_plugins = (
    "tests.support.operators_fixtures",
    "tests.support.browser_fixtures",
    "tests.support.network_app_fixtures",
)

HOSTILE = "<img src=x onerror=alert(1)>\n<script>alert(2)</script> https://example.com"


def test_a_message_appears_by_itself_is_read_and_stays_between_two(
    living_network: LivingNetwork, browser: Browser, page: Page, problems: Problems
) -> None:
    network, of_anna = living_network, register(page, living_network, "Anna of messages")
    with browser.new_context(viewport=WIDE) as context, browser.new_context() as another:  # type: ignore[arg-type]
        boris, clara = context.new_page(), another.new_page()
        problems.watch(boris)
        of_boris = register(boris, network, "Boris of messages")
        of_clara = register(clara, network, "Clara of messages")
        # The next message's number then differs from how many are unread.
        page.goto(f"{network.url}/messages/{of_clara}")
        page.get_by_label("Message to Clara of messages").fill("hello")
        page.get_by_role("button", name="Send").click()
        page.locator(".thread li.mine").wait_for()
        boris.goto(f"{network.url}/messages/{of_anna}")
        boris.get_by_text("No messages yet.").wait_for()
        boris.get_by_label("Message to Anna of messages").fill("a draft that is kept")

        page.goto(f"{network.url}/people/{of_boris}")
        page.get_by_role("link", name="Write a message").click()
        page.get_by_label("Message to Boris of messages").fill(HOSTILE)
        page.get_by_role("button", name="Send").click()
        page.locator(".thread li.mine").wait_for()
        # It comes without a click, as text, and the draft stays; that it was seen comes back the same way.
        message = boris.locator(".thread li .body")
        message.wait_for()
        assert message.text_content() == HOSTILE
        assert message.locator("img, script, a").count() == 0
        assert boris.get_by_label("Message to Anna of messages").input_value() == "a draft that is kept"
        page.locator(".thread li.mine", has_text=", read").wait_for()
        boris.locator(".thread strong", has_text="new").wait_for(state="detached")
        assert boris.get_by_role("button", name="Mark as read").count() == 0

        # An answer is announced on whatever page its reader opens next.
        boris.get_by_role("button", name="Send").click()
        boris.locator(".thread li.mine").wait_for()
        page.goto(f"{network.url}/communities")
        page.get_by_role("link", name="Messages 1 unread").click()
        page.get_by_role("link", name="Boris of messages 1 unread").click()
        page.get_by_text("a draft that is kept").wait_for()

        clara.goto(f"{network.url}/messages/{of_boris}")
        clara.get_by_text("No messages yet.").wait_for()  # Clara's own thread
        clara.goto(f"{network.url}/messages/{of_anna}")
        clara.locator(".thread .body", has_text="hello").wait_for()
        assert clara.locator(".thread li").count() == 1
        for nobody in ("200", "999999999", "x"):  # simulated, unknown, no id
            answer = clara.goto(f"{network.url}/messages/{nobody}")
            assert answer is not None
            assert answer.status == 404
    for view in ("users", "posts", "interactions"):
        rows = network.query(f"SELECT row_to_json(v)::text FROM recs.{view} v")
        assert rows
        assert not [text for (text,) in rows if "a draft" in text or "of messages" in text]
