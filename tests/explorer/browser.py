"""The explorer in Chromium, with a record of every request and every console message."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, Request, sync_playwright

from tests.checkout import ROOT

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # Chromium has no sandbox for root, as in containers
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
# CI keeps these for people to look at.
SCREENSHOTS = Path(os.environ.get("VAESERVE_SCREENSHOTS", ROOT / "screenshots"))
DESKTOP = (1280, 900)
PHONE = (390, 844)


def program() -> str | None:
    """The path of the browser, if one is installed."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser with a temporary profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One page of the explorer, with its requests and its errors."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.in_flight: Counter[str] = Counter()  # by path
        self.most_in_flight: Counter[str] = Counter()
        page.on(
            "console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text)
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._begun)
        page.on("requestfinished", self._ended)
        page.on("requestfailed", self._ended)

    def open(self) -> "Visit":
        """Load the page and wait until all panels show something."""
        self.page.goto(self.url)
        self.page.locator("#samples li").first.wait_for()
        self.page.locator("#traverse img[src]").wait_for()
        self.settle()
        return self

    def settle(self) -> None:
        """Wait until no request has been in flight for a while."""
        quiet = 0
        deadline = time.monotonic() + 60
        while quiet < 3:
            assert time.monotonic() < deadline, f"still in flight after 60 s: {self.in_flight}"
            self.page.wait_for_timeout(60)
            quiet = 0 if any(self.in_flight.values()) else quiet + 1

    def foreign(self) -> list[str]:
        """The requests to other hosts than the service."""
        return [each for each in self.asked if not each.startswith((self.url, "data:", "blob:"))]

    def screenshot(self, name: str, selector: str = "body") -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.locator(selector).screenshot(path=SCREENSHOTS / f"{name}.png")

    def _begun(self, request: Request) -> None:
        self.asked.append(request.url)
        path = self._path(request)
        self.in_flight[path] += 1
        self.most_in_flight[path] = max(self.most_in_flight[path], self.in_flight[path])

    def _ended(self, request: Request) -> None:
        self.in_flight[self._path(request)] -= 1

    def _path(self, request: Request) -> str:
        return request.url.partition("?")[0].removeprefix(self.url)
