"""The explorer with a model of photographs: 64×64 in colour."""

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.explorer.acts import AXE, copied, draw, pixels, run_curl, shown, shown_png
from tests.explorer.browser import PHONE
from vaeserve.bundle.images import read_image

pytestmark = pytest.mark.heavy

PHOTOS = "photos@1"
DROP = """([selector, file]) => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(file), (character) => character.charCodeAt(0));
    transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
    const drop = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
    document.querySelector(selector).dispatchEvent(drop);
}"""


def photograph(width=150, height=75, mode="RGB"):
    """A PNG file with soft shapes: red grows to the right, green downwards; half transparent in RGBA."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    levels = np.stack([255 * x, 255 * y, 128 + 100 * np.sin(6 * x * y), 255 * (x < 0.5)], axis=2)
    file = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).convert(mode).save(file, "PNG")
    return file.getvalue()


def choose(visit, content, name="photograph.png"):
    files = {"name": name, "mimeType": "image/png", "buffer": content}
    visit.page.locator("#file").set_input_files(files)
    visit.settle()


def easel(visit):
    """What the canvas shows: uint8 [h, w, 3]."""
    with Image.open(io.BytesIO(shown_png(visit, "#easel"))) as image:
        return np.asarray(image.convert("RGB"))


def rgb(colour):
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])


def select(visit, model=PHOTOS):
    visit.page.locator("#model").select_option(label=model)
    expect(visit.page.locator("#about")).to_contain_text(model)
    visit.settle()
    return visit


def test_page_fits_a_phone_and_is_accessible(visiting):
    visit = select(visiting(PHONE, "dark").open())
    visit.screenshot("photographs-phone-dark")
    assert visit.page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    assert "paint over" in visit.page.locator("#describe .words").inner_text()
    results = AXE.run(visit.page)
    assert results.violations_count == 0, results.generate_report()


@pytest.mark.parametrize(("model", "rendering"), [(PHOTOS, "auto"), ("colour@1", "pixelated")])
def test_only_small_images_are_shown_without_smoothing(visit, model, rendering):
    select(visit, model)
    for selector in ("#samples img", "#easel", ".sliders canvas", ".way canvas", "[data-is=error]"):
        style = visit.page.locator(selector).first.evaluate(
            "element => getComputedStyle(element).imageRendering"
        )
        assert style == rendering, selector


def test_strokes_paint_on_a_photograph(visit, tmp_path):
    select(visit)
    pen = visit.page.get_by_label("Pen", exact=True)
    choose(visit, photograph(64, 64))
    before = easel(visit)
    draw(visit, (0.3, 0.3), (0.7, 0.3))
    after, side = easel(visit), len(before)
    assert (after[side // 2 :] == before[side // 2 :]).all()
    assert (after[int(0.3 * side), side // 2] == rgb(pen.input_value())).all()
    run_curl(tmp_path, copied(visit, "describe", "curl"))
    reconstruction = pixels((tmp_path / "reconstruction.png").read_bytes())
    np.testing.assert_array_equal(reconstruction, shown(visit, "[data-is=reconstruction]"))

    visit.page.get_by_role("button", name="Clear").click()
    draw(visit, (0.3, 0.3), (0.7, 0.3))
    assert len(np.unique(easel(visit)[side // 2 :].reshape(-1, 3), axis=0)) == 1  # the background


def test_pen_takes_its_colour_from_the_picture_and_keeps_it(visit):
    select(visit)
    pen, pick = visit.page.get_by_label("Pen", exact=True), visit.page.get_by_role("button", name="Pen from")
    choose(visit, photograph(64, 64))
    before = easel(visit)
    pick.click()
    expect(pick).to_have_attribute("aria-pressed", "true")
    draw(visit, (0.75, 0.25))
    expect(pick).to_have_attribute("aria-pressed", "false")
    assert (easel(visit) == before).all()
    chosen = pen.input_value()
    assert abs(rgb(chosen) - before[64, 192]).max() <= 4  # the place may lie a pixel aside
    visit.page.get_by_role("button", name="Another sample").click()
    visit.settle()
    assert pen.input_value() == chosen
    draw(visit, (0.5, 0.5))  # a dot
    assert (easel(visit)[128, 128] == rgb(chosen)).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize(
    ("model", "fit"), [(PHOTOS, "contain"), ("cover@1", "cover"), ("stretch@1", "stretch")]
)
def test_original_is_shown_as_the_model_gets_it(visit, model, fit, mode):
    select(visit, model)
    content = photograph(mode=mode)
    choose(visit, content)
    expected = read_image(content, height=64, width=64, channels=3, fit=fit).astype(int)
    with Image.open(io.BytesIO(shown_png(visit, "#easel"))) as image:
        found = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX)).astype(int)
    assert abs(found - expected).mean() < 3


def test_photograph_above_the_limit_is_shrunk_first(visit):
    select(visit)
    file = io.BytesIO()
    Image.linear_gradient("L").resize((4200, 4100)).convert("RGB").save(file, "PNG", compress_level=1)
    choose(visit, file.getvalue(), "large.png")
    expect(visit.page.locator("#describe .trouble")).to_be_hidden()
    assert "large.png" not in copied(visit, "describe", "curl")
    assert easel(visit).std() > 50


def test_dropped_photograph_scrolls_into_view(visit):
    select(visit)
    visit.page.evaluate("scrollTo(0, 0)")
    expect(visit.page.locator("#easel")).not_to_be_in_viewport()
    visit.page.evaluate(DROP, ["h1", base64.b64encode(photograph()).decode()])
    expect(visit.page.locator("#easel")).to_be_in_viewport()
    visit.settle()
    assert "@'dropped.png'" in copied(visit, "describe", "curl")


def test_largest_error_is_white(visit, explored):
    select(visit)
    content = photograph(64, 64)
    choose(visit, content)
    query, headers = "model=photos&return=error_map", {"Content-Type": "image/png"}
    answer = httpx.post(f"{explored}score?{query}", content=content, headers=headers).raise_for_status()
    error = pixels(base64.b64decode(answer.json()["error_map"][0]))
    assert error.max() < 250
    np.testing.assert_allclose(shown(visit, "[data-is=error]"), error * 255 / error.max(), atol=1)
    expect(visit.page.locator("[data-for=error]")).to_contain_text(
        f"white is {100 * error.max() / 255:.0f} %"
    )


def test_map_frames_its_images_in_the_colours_of_the_legend(visit):
    select(visit)
    counts = visit.page.evaluate(
        """() => {
            const map = document.querySelector("#map canvas");
            const all = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
            return [...document.querySelectorAll("#map .spot")].map((spot) => {
                const pen = new OffscreenCanvas(1, 1).getContext("2d");
                pen.fillStyle = spot.style.background;
                pen.fillRect(0, 0, 1, 1);
                const wanted = pen.getImageData(0, 0, 1, 1).data;
                let count = 0;
                for (let at = 0; at < all.length; at += 4) {
                    count += [0, 1, 2].every((part) => Math.abs(all[at + part] - wanted[part]) <= 2);
                }
                return count;
            });
        }"""
    )
    assert len(counts) == 2
    assert min(counts) > 100
