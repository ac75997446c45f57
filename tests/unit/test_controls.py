"""Control characters in other people's text are shown, not sent: in tables, JSON, logs and pages."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from batch.formatting import as_json, echo, one_line, table
from batch.reports.files import load_template
from contract.logs import configure_logging
from contract.settings import Settings
from contract.text import CONTROLS, as_clause, escape_controls, escape_json, escape_line
from serving.telemetry import JsonLines

ROOT = Path(__file__).parents[2]
HOSTILE = "a\x1b[2J\x1b]0;title\x07b\x9b31mc\u202ed\u2066e\x7ff\rg"
SHOWN = r"a\x1b[2J\x1b]0;title\x07b\x9b31mc\u202ed\u2066e\x7ff\rg"


def test_control_characters_become_escapes_and_all_other_text_stays() -> None:
    assert escape_controls(HOSTILE) == SHOWN
    assert escape_controls("two\nlines\tand a tab") == "two\nlines\\tand a tab"
    assert escape_line("two\nlines") == r"two\nlines"
    plain = "Пост № 1: naïve 東京 👩‍👩‍👧 שלום “quoted” \\x1b as text"
    assert escape_line(plain) == plain


def test_every_control_character_is_caught() -> None:
    controls = [
        *range(0x20),
        0x7F,
        *range(0x80, 0xA0),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        0xD800,
    ]
    for code in controls:
        shown = escape_line(f"x{chr(code)}y")
        assert re.fullmatch(r"x\\(n|t|r|x[0-9a-f]{2}|u[0-9a-f]{4})y", shown), code
        shown.encode()
    assert CONTROLS.search("".join(chr(code) for code in range(0xA0, 0x2000))) is None


def test_tables_and_lines_show_them(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(["topic", "posts"], [[f"{HOSTILE}\nb", 1], ["sport", 20]]).split("\n")
    assert rows[1] == f"{SHOWN}\\nb      1"
    assert {len(row) for row in rows} == {len(rows[0])}
    assert one_line(f"{HOSTILE}\n again", 200) == SHOWN.replace(r"\r", " ") + " again"
    assert len(one_line(HOSTILE * 10, 60)) <= 60
    echo(HOSTILE)
    echo(HOSTILE, err=True)
    assert capsys.readouterr() == (f"{SHOWN}\n", f"{SHOWN}\n")


def test_json_keeps_its_meaning() -> None:
    record = {HOSTILE: [HOSTILE, "two\nlines"], "plain": "naïve"}
    printed = as_json(record)
    assert json.loads(printed) == record
    assert CONTROLS.search(printed) is None
    assert "naïve" in printed
    assert escape_json('"\x9b"') == r'"\u009b"'


@pytest.mark.parametrize("formatter", [None, JsonLines()])
def test_logs_show_them(
    capsys: pytest.CaptureFixture[str],
    formatter: logging.Formatter | None,
) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging(Settings(), formatter)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logging.getLogger("batch").exception("the topic %s\n2026-11-27 forged", HOSTILE)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    logged = capsys.readouterr().err
    assert CONTROLS.search(logged) is None
    assert r"forged" in logged.split("\n")[0]
    if formatter:
        fields = json.loads(logged)
        assert fields["message"] == f"the topic {HOSTILE}\n2026-11-27 forged"
        assert HOSTILE in fields["exception"]
    else:
        assert logged.count(SHOWN) >= 2


def test_pages_show_them() -> None:
    environment = load_template("style.html").environment
    page = environment.from_string("<b>{{ topic }}</b>{{ chart | safe }}")
    assert page.render(topic=f"<i>{HOSTILE}", chart="<svg/>\n") == f"<b>&lt;i&gt;{SHOWN}</b><svg/>\n"


def test_commands_print_by_echo_alone() -> None:
    """Nothing else shows control characters: `print` and `click.echo` send them to the terminal."""
    sources = [path for name in ("batch", "scheduler", "demo") for path in (ROOT / name).rglob("*.py")]
    allowed = ROOT / "batch" / "formatting.py"
    printing = re.compile(r"\bclick\.(echo|secho)\(|(?<![\w.])print\(|std(out|err)\.write\(")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if path != allowed and printing.search(line)
    ]
    assert len(sources) > 50
    assert found == []
    assert printing.search('print("text", file=sys.stderr)')


@pytest.mark.parametrize(
    ("message", "clause"),
    [
        (
            'server at "db" failed: refused\n\tIs the server running on that host '
            "and accepting TCP/IP connections?",
            'server at "db" failed: refused',
        ),
        ("Error 111 connecting to db:1. It refused.", "Error 111 connecting to db:1. It refused"),
    ],
)  # fmt: skip
def test_a_drivers_message_becomes_a_clause(message: str, clause: str) -> None:
    assert as_clause(message) == clause
