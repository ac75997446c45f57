"""Newcomers to the demo's network, in a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.browser import NARROW, Problems
from tests.support.network_app import LivingNetwork, pick_likes, register, sign_in

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest_plugins = (
    "tests.support.operators_fixtures",
    "tests.support.browser_fixtures",
    "tests.support.network_app_fixtures",
)


def test_a_newcomer_registers_likes_and_is_known_after_a_refresh(
    living_network: LivingNetwork, page: Page, problems: Problems
) -> None:
    network = living_network
    problems.allow("status of 400")
    page.goto(f"{network.url}/messages")
    assert page.url == f"{network.url}/register?next=/messages"
    page.get_by_label("Name").fill("Newcomer")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_label("Age").fill("33")
    page.get_by_label("Age").evaluate("field => field.type = 'text'")  # the server checks too
    page.get_by_label("Age").fill("thirty")
    page.get_by_role("button", name="Register").click()
    assert "Write a whole number" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("Name").input_value() == "Newcomer"
    assert page.get_by_label("Password").input_value() == ""
    user = register(page, network, "Newcomer", age="33", country="Russia", city="Russia city 1")

    ((age, country),) = network.query(f"SELECT age, country FROM recs.users WHERE user_id = {user}")
    assert (age, country) == (33, "Russia")
    read = network.query("SELECT DISTINCT table_name FROM information_schema.view_column_usage")
    assert not {"account", "message"} & {table for (table,) in read}

    communities = {each.inner_text() for each in page.locator(".card .community").all()}
    assert page.locator(".card").count() == 12
    assert len(communities) >= 4
    page.goto(f"{network.url}/me")
    assert "There is no list of yours yet: popular posts" in page.inner_text("main")
    page.go_back()
    liked = pick_likes(page, 3)
    page.reload()
    assert page.locator("button.like[aria-pressed=true]").count() == 3
    page.goto(f"{network.url}/me")
    assert "3 liked" in page.inner_text("main")
    network.refresh()
    page.reload()
    assert "made for you" in page.inner_text("main")
    assert "0 liked" in page.inner_text("main")
    done = network.query(f"SELECT post_id::text FROM activity WHERE user_id = {user} AND kind = 'like'")
    assert sorted(post for (post,) in done) == sorted(liked)


def test_one_signs_in_elsewhere_looks_as_another_and_signs_out_everywhere(
    living_network: LivingNetwork, page: Page, browser: Browser, problems: Problems
) -> None:
    network = living_network
    user = register(page, network, "Wanderer")
    with browser.new_context(viewport=NARROW) as context:  # type: ignore[arg-type]
        other = context.new_page()
        problems.watch(other)
        sign_in(other, network, "WANDERER")
        other.goto(f"{network.url}/people?q=210")
        other.get_by_role("link", name="person 210").click()
        other.get_by_role("button", name="Look as this person").click()
        other.wait_for_url(f"{network.url}/")
        assert "You look as person 210" in other.inner_text(".demo-banner")
        page.goto(f"{network.url}/me")
        assert "You look as" not in page.inner_text(".demo-banner")  # one's other sessions do not
        other.get_by_role("button", name="Back to Wanderer").click()
        other.wait_for_url(f"{network.url}/")
        page.get_by_role("button", name="Sign out everywhere").click()
        page.wait_for_url("**/sign-in")
        other.goto(f"{network.url}/me")
        assert "/register" in other.url
    looked = network.query(f"SELECT object_id FROM activity WHERE user_id = {user} AND kind = 'look'")
    assert looked == [("210",)]
