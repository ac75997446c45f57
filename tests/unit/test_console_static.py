"""What the console sends to browsers beside its pages: htmx as it was published, nothing from elsewhere."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "console" / "static"

HTMX_SHA256 = "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130"
"""Of htmx.min.js in the package htmx.org 4.0.1 on npm."""

PAGES = [*sorted((ROOT / "console" / "templates").rglob("*.html"))]
SHARED = [*sorted((ROOT / "batch" / "reports" / "templates").glob("*"))]


def test_htmx_is_the_published_file_with_its_licence() -> None:
    assert hashlib.sha256((STATIC / "htmx.min.js").read_bytes()).hexdigest() == HTMX_SHA256
    assert "Zero-Clause BSD" in (STATIC / "htmx.LICENSE").read_text()


def test_nothing_comes_from_another_host() -> None:
    assert len(PAGES) > 5
    external = re.compile(r"""(?:https?:)?//[a-z]|@import|[:\s]url\(""", re.IGNORECASE)
    found = [
        f"{path.name}: {line.strip()}"
        for path in [*PAGES, *SHARED, STATIC / "app.css"]
        for line in path.read_text().splitlines()
        if external.search(line) and "http://www.w3.org/2000/svg" not in line
    ]
    assert found == []


def test_templates_have_no_inline_script_or_style() -> None:
    inline = re.compile(
        r"""\s(?:style|on[a-z]+)\s*=\s*["']|<style|<script(?![^>]*\ssrc=)|\|\s*tojson|hx-on"""
    )
    found = [
        f"{path.name}: {line.strip()}"
        for path in PAGES
        for line in path.read_text().splitlines()
        if inline.search(line)
    ]
    assert found == []


def test_a_report_is_one_file_with_the_shared_style() -> None:
    from batch.reports.files import load_template

    page = load_template("style.html").render()
    assert page.count("<style>") == 1
    assert (ROOT / "batch" / "reports" / "templates" / "style.css").read_text().strip() in page
