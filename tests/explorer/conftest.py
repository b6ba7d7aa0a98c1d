"""A service, a browser, and pages that must neither log errors nor send requests to other hosts."""

import os

import pytest

from tests import live
from tests.explorer.browser import DESKTOP, Visit, chromium, program
from tests.explorer.models import make_repository


@pytest.fixture(scope="session")
def browser():
    if program() is None:
        reason = "needs Chromium: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(f"CI must test the explorer: {reason}")
        pytest.skip(reason)
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def explored(tmp_path_factory):
    """The URL of a service with a complete model and a minimal one."""
    with live.serving(make_repository(tmp_path_factory.mktemp("explored"))) as url:
        yield f"{url}/"


@pytest.fixture
def visiting(browser, explored):
    """Open the page in a new window; at the end check its errors and requests."""
    visits, windows = [], []

    def visit(size=DESKTOP, scheme="light", url=explored):
        window = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            reduced_motion="reduce",
            permissions=["clipboard-read", "clipboard-write"],
        )
        windows.append(window)
        visits.append(Visit(window.new_page(), url))
        return visits[-1]

    yield visit
    for each in visits:
        assert each.complaints == []
        assert each.foreign() == []
    for window in windows:
        window.close()


@pytest.fixture
def visit(visiting):
    return visiting().open()
