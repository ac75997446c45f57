"""Take a picture of every page of a running console, light and dark, wide and narrow.

In another terminal than `make demo`, with playwright (requirements-dev.txt) and a chromium:

    .venv/bin/python -m demo exec -- .venv/bin/python -m benchmarks.screenshots FOLDER

`--docs` instead takes the two of README, docs/console-home.png and docs/console-user.png.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from batch import redis_client
from batch.files import write_atomically
from contract.keys import Keys
from contract.settings import Settings
from demo.console_pages import example_pages

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = "/usr/bin/chromium"
SCHEMES = ("light", "dark")
WIDTHS = {"": 1280, "-narrow": 320}
DOCS = {"home": Path("docs/console-home.png"), "user": Path("docs/console-user.png")}
DOCS_WIDTH, DOCS_HEIGHT, COLOURS = 1100, 880, 64


def main() -> None:
    """Take the pictures; exit 1 if a page does not answer 200."""
    options = parse_arguments()
    from playwright.sync_api import sync_playwright

    settings = Settings.from_environment()
    with redis_client.connected(settings, interactive=True) as client:
        pages = example_pages(client, Keys(settings.stores.key_prefix))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        page = browser.new_page()
        if options.docs:
            wrong = [take_for_docs(page, options.url, pages[name], path) for name, path in DOCS.items()]
        else:
            options.folder.mkdir(parents=True, exist_ok=True)
            wrong = [take_all(page, options.url, pages, options.folder)]
        browser.close()
    if any(wrong):
        sys.exit("error: " + "; ".join(filter(None, wrong)))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.screenshots", description="Picture the console.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("screenshots"))
    parser.add_argument(
        "--url", default=f"http://127.0.0.1:{Settings.from_environment().console.console_port}"
    )
    parser.add_argument("--docs", action="store_true", help="the pictures of README only")
    parser.add_argument("--chromium", default=CHROMIUM, help="the browser's program")
    return parser.parse_args()


def take_all(page: Page, url: str, pages: dict[str, str], folder: Path) -> str:
    """Write `NAME-light.png`, `NAME-light-narrow.png` and so on; return what is wrong, or nothing."""
    wrong = []
    for name, path in pages.items():
        for suffix, width in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": 800})
            answer = page.goto(f"{url}{path}")
            if answer is None or answer.status != 200:
                wrong.append(f"{path} answers {answer.status if answer else 'nothing'}")
            for scheme in SCHEMES:
                page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                page.screenshot(path=folder / f"{name}-{scheme}{suffix}.png", full_page=True)
    return "; ".join(wrong)


def take_for_docs(page: Page, url: str, path: str, file: Path) -> str:
    """Write the first screen of a page, in few colours; return what is wrong, or nothing."""
    page.set_viewport_size({"width": DOCS_WIDTH, "height": DOCS_HEIGHT})
    answer = page.goto(f"{url}{path}")
    if answer is None or answer.status != 200:
        return f"{path} answers {answer.status if answer else 'nothing'}"
    write_atomically(file, reduce_colours(page.screenshot()))
    return ""


def reduce_colours(picture: bytes) -> bytes:
    """Return a PNG in few colours, which makes its file small."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
    return small.getvalue()


if __name__ == "__main__":
    main()
