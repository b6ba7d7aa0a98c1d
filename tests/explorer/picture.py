"""Makes docs/explorer.png: python -m tests.explorer.picture [--models MODELS] [--photographs NAME@VERSION].

Above lies the top of the page with the default model, below it the map of a model of photographs.
"""

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from tests import live
from tests.checkout import ROOT
from tests.explorer.browser import Visit, chromium

WIDTH = 960
TOP = 515  # pixels: the header and the opening
BELOW = 500
GAP = 12
PATH = ROOT / "docs/explorer.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--photographs", default="signs@1", metavar="NAME@VERSION")
    arguments = parser.parse_args()
    with live.serving(arguments.models) as url, chromium() as browser:
        top = shot(browser, url, None, "header", TOP)
        below = shot(browser, url, arguments.photographs, "#map", BELOW)
    picture = Image.new("RGB", (WIDTH, TOP + GAP + BELOW), "white")
    picture.paste(top, (0, 0))
    picture.paste(below, (0, TOP + GAP))
    picture.save(PATH, optimize=True)
    print(f"{PATH}: {PATH.stat().st_size:,} bytes")


def shot(browser: Browser, url: str, model: str | None, start: str, height: int) -> Image.Image:
    """The page from the element `start` on, with the default model or another."""
    page = browser.new_page(viewport={"width": WIDTH, "height": height}, reduced_motion="reduce")
    visit = Visit(page, f"{url}/").open()
    if model:
        page.locator("#model").select_option(label=model)
        page.locator("#about", has_text=model).wait_for()
        visit.settle()
    page.locator(start).evaluate("element => element.scrollIntoView()")
    page.wait_for_timeout(300)  # the map is drawn in the next frame
    with Image.open(io.BytesIO(page.screenshot())) as image:
        return image.convert("RGB")


if __name__ == "__main__":
    main()
