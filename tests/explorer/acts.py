"""What tests do with a page of the explorer, and what they read from it."""

import base64
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from tests.checkout import ROOT

# Violations are what fails; colour contrast is among them.
AXE = Axe()


def pixels(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("L")).astype(int)


def shown(visit, selector):
    """The image of an <img> or a <canvas>, as grey levels [h, w]."""
    return pixels(shown_png(visit, selector))


def shown_png(visit, selector):
    """The image of an <img> or a <canvas>, as a PNG file."""
    element = visit.page.locator(selector)
    data = element.evaluate(
        """async (element) => {
            const canvas = document.createElement("canvas");
            if (element instanceof HTMLImageElement) await element.decode();
            canvas.width = element.naturalWidth ?? element.width;
            canvas.height = element.naturalHeight ?? element.height;
            canvas.getContext("2d").drawImage(element, 0, 0);
            return canvas.toDataURL().split(",")[1];
        }"""
    )
    return base64.b64decode(data)


def changes(visit, selector, act):
    """Whether the action changes the image."""
    before = shown(visit, selector)
    act()
    visit.settle()
    after = shown(visit, selector)
    return before.shape != after.shape or (before != after).any()


def copied(visit, panel, language):
    """The recipe, copied through the clipboard."""
    section = visit.page.locator(f"#{panel}")
    if section.locator("details").get_attribute("open") is None:
        section.locator("summary").click()
    section.get_by_role("button", name=f"Copy the {language}").click()
    expect(section.locator(".head", has_text=language).get_by_role("status")).to_contain_text("Copied")
    return visit.page.evaluate("navigator.clipboard.readText()")


def run(folder, program, *arguments):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_curl(folder, code):
    return run(folder, "bash", "-euo", "pipefail", "-c", code.replace("curl ", "curl -fsS "))


def draw(visit, *points):
    """A stroke on the easel through points in its units, 0…1."""
    easel = visit.page.locator("#easel")
    easel.scroll_into_view_if_needed()
    box = easel.bounding_box()
    mouse = visit.page.mouse
    for number, (x, y) in enumerate(points):
        mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if number == 0:
            mouse.down()
    mouse.up()
    visit.settle()
