"""What people of the network write is text for operators too: in the console and on a terminal."""

from __future__ import annotations

import re

from contract.text import CONTROLS
from tests.support.batch import execute
from tests.support.console import open_console
from tests.support.network_app import LivingNetwork

pytest_plugins = (
    "tests.support.operators_fixtures",
    "tests.support.browser_fixtures",
    "tests.support.network_app_fixtures",
)

HOSTILE = "<img src=x onerror=alert(1)> \x1b[2J\x1b]0;title\x07 \u202egnp.exe \x9b31m \"'{{ 7 * 7 }}"
"""Markup, sequences that a terminal obeys, and a character that reorders text. The app takes no control
characters; a network that was loaded may have them."""


def test_others_text_is_harmless_in_the_console_and_on_a_terminal(living_network: LivingNetwork) -> None:
    network, night = living_network, living_network.night
    ((user,),) = network.query(
        "SELECT max(user_id) FROM recs.users u WHERE EXISTS "
        "(SELECT FROM feed_action a WHERE a.user_id = u.user_id AND action = 'like')"
    )
    post = night.run_json("lookup", str(user))["posts"][0]["post_id"]
    ((text, topic),) = network.query(f"SELECT text, topic FROM post WHERE id = {post}")
    ((city,),) = network.query(f"""SELECT city FROM "user" WHERE id = {user}""")
    written = HOSTILE.replace("'", "''")
    try:
        execute(
            night.database_url,
            f"UPDATE post SET text = '{written}', topic = '{written}' WHERE id = {post}",
            f"""UPDATE "user" SET city = '{written}' WHERE id = {user}""",
            f"INSERT INTO community (name, about, made_by) VALUES ('{written}', '{written}', {user})",
        )
        with open_console(night.settings) as client:
            for address in (
                f"/users/{user}",
                f"/posts/{post}",
                "/posts?q=onerror",
                "/search?q=%3Cimg",
                "/data",
                "/",
            ):
                page = client.get(address).text
                assert "<img" not in page, address
                assert not CONTROLS.search(page.replace("\t", "")), address
                shown = "&lt;img src=x onerror=alert(1)&gt;" in page
                assert shown or address in {"/", "/search?q=%3Cimg", "/data"}, address
        for command in (
            ("lookup", str(user)), ("lookup", str(user), "--json"), ("explain", str(user), str(post)),
            ("explain", str(user), str(post), "--json"), ("show",), ("doctor",), ("runs",),
        ):  # fmt: skip
            done = night.batch(*command)
            printed = done.stdout + done.stderr
            assert printed, command
            assert not CONTROLS.search(printed), command
            assert "--json" in command or re.search("Traceback", printed) is None
    finally:
        execute(
            night.database_url,
            f"UPDATE post SET text = $t${text}$t$, topic = $t${topic}$t$ WHERE id = {post}",
            f"""UPDATE "user" SET city = $t${city}$t$ WHERE id = {user}""",
            f"DELETE FROM community WHERE name = '{written}'",
        )
