"""People of the demo's network, in a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.network_app import LivingNetwork, register

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = (
    "tests.support.operators_fixtures",
    "tests.support.browser_fixtures",
    "tests.support.network_app_fixtures",
)


def test_smoke(living_network: LivingNetwork, page: Page) -> None:
    page.goto(f"{living_network.url}/register")
    page.screenshot(path="/tmp/A/register.png", full_page=True)
    register(page, living_network, "Anna", country="Russia")
    page.screenshot(path="/tmp/A/welcome.png", full_page=True)
