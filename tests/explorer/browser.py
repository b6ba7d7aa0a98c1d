"""The explorer in a real Chromium: a page that notes every request and every complaint."""

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
    "--no-sandbox",  # root, as in containers, has none
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
# Kept as output of CI, so that people can look at what the tests saw.
SCREENSHOTS = Path(os.environ.get("VAESERVE_SCREENSHOTS", ROOT / "screenshots"))
DESKTOP = (1280, 900)
PHONE = (390, 844)


def program() -> str | None:
    """Where the browser is, if there is one."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Headless, with a new profile that is removed afterwards."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One page of the explorer: what it asked for, what it complained about, what is shown."""

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
        """Until all panels have something to show."""
        self.page.goto(self.url)
        self.page.locator("#samples li").first.wait_for()
        self.page.locator("#traverse img[src]").wait_for()
        self.settle()
        return self

    def settle(self) -> None:
        """Until nothing is asked for any more, for a while in which the page can have a new wish."""
        quiet = 0
        deadline = time.monotonic() + 60
        while quiet < 3:
            assert time.monotonic() < deadline, f"still in flight after 60 s: {self.in_flight}"
            self.page.wait_for_timeout(60)
            quiet = 0 if any(self.in_flight.values()) else quiet + 1

    def foreign(self) -> list[str]:
        """What was asked of others than the service."""
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
