"""Each panel of the explorer, used in a real browser with a real service."""

import io
import json
import sys

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests import live
from tests.bundles import make_bundle
from tests.explorer.acts import AXE, changes, copied, draw, pixels, run, run_curl, shown
from tests.explorer.browser import DESKTOP, PHONE

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("device", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_page_shows_all_panels_and_is_accessible(visiting, device, size, scheme):
    visit = visiting(size, scheme).open()
    page = visit.page
    visit.screenshot(f"{device}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert page.locator("#samples li").count() == 48
    assert shown(visit, "#walk canvas").std() > 10
    assert shown(visit, "[data-is=reconstruction]").std() > 10
    for summary in page.locator("summary").all():
        summary.click()
    results = AXE.run(page)
    assert results.violations_count == 0, results.generate_report()


def test_drawing_is_described_and_its_recipe_gives_the_same(visit, tmp_path):
    facts = visit.page.locator("#describe .facts")
    assert changes(
        visit,
        "[data-is=reconstruction]",
        lambda: draw(visit, (0.3, 0.25), (0.7, 0.25), (0.5, 0.5), (0.4, 0.85)),
    )
    visit.screenshot("drawn", "#describe")
    p = facts.locator("dd").first.evaluate("dd => dd.firstChild.textContent")
    assert 0 < float(p) <= 1
    assert shown(visit, "[data-is=error]").std() > 0
    said = run_curl(tmp_path, copied(visit, "describe", "curl"))
    encoded, scored = said.replace("}{", "}\n{").splitlines()
    assert len(json.loads(encoded)["mean"][0]) == 32
    assert f"{json.loads(scored)['p_value'][0]:.2g}" == f"{float(p):.2g}"
    made = pixels((tmp_path / "reconstruction.png").read_bytes())
    np.testing.assert_array_equal(made, shown(visit, "[data-is=reconstruction]"))
    assert "(1, 28, 28, 1)" in run(tmp_path, sys.executable, "-c", copied(visit, "describe", "Python"))

    visit.page.get_by_role("button", name="Clear").click()
    visit.settle()
    assert shown(visit, "#easel").std() == 0


def test_file_is_described_and_an_invalid_one_is_explained(visit, explored, tmp_path):
    sample = httpx.get(f"{explored}sample?n=1&seed=11", headers={"Accept": "image/png"}).content
    (tmp_path / "digit.png").write_bytes(sample)
    (tmp_path / "text.png").write_text("this is not a picture")
    choose = visit.page.locator("#file")
    assert changes(visit, "[data-is=reconstruction]", lambda: choose.set_input_files(tmp_path / "digit.png"))
    assert "@'digit.png'" in copied(visit, "describe", "curl")

    trouble = visit.page.locator("#describe .trouble")
    choose.set_input_files(tmp_path / "text.png")
    expect(trouble).to_contain_text("image")
    assert visit.complaints.pop().startswith(
        "Failed to load resource: the server responded with a status of 422"
    )
    drop = """([bytes]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(bytes)], "dropped.png", { type: "image/png" }));
        const drop = new DragEvent("drop", { dataTransfer: transfer, bubbles: true });
        document.querySelector("#easel").dispatchEvent(drop);
    }"""
    visit.page.evaluate(drop, [list(sample)])
    expect(trouble).to_be_hidden()
    assert "@'dropped.png'" in copied(visit, "describe", "curl")


def test_map_follows_pointer_and_keys(visit):
    page = visit.page
    area = page.locator("#map canvas")

    def place(x, y):
        area.scroll_into_view_if_needed()
        box = area.bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def drag():
        page.mouse.move(*place(0.5, 0.5))
        page.mouse.down()
        page.mouse.move(*place(0.25, 0.4), steps=20)
        page.mouse.up()

    visit.most_in_flight.clear()
    assert changes(visit, "#map img", drag)
    assert visit.most_in_flight["decode"] == 1
    expect(page.locator("#map figcaption")).to_contain_text("The nearest image is a")
    assert "decode?model=mnist%401" in copied(visit, "map", "curl")

    page.mouse.move(*place(0.4, 0.5))  # hovering enlarges what is there
    visit.settle()
    visit.screenshot("map", "#map")
    for act in (
        lambda: page.get_by_role("button", name="Zoom in").click(),
        lambda: page.get_by_role("button", name="3", exact=True).click(),
        lambda: page.get_by_role("button", name="Whole map").click(),
    ):
        assert changes(visit, "#map canvas", act)

    def keys():
        area.focus()
        for key in ("ArrowLeft", "ArrowUp", "+", "ArrowLeft", "ArrowLeft"):
            page.keyboard.press(key)

    assert changes(visit, "#map img", keys)

    page.get_by_label("Drag to move").check()
    before = shown(visit, "#map img")
    assert changes(visit, "#map canvas", drag)
    np.testing.assert_array_equal(shown(visit, "#map img"), before)


def test_slider_changes_the_image_with_one_request_in_flight(visit, tmp_path):
    page = visit.page
    slider = page.locator("#traverse input").first
    box = slider.bounding_box()

    def slide():
        slider.scroll_into_view_if_needed()
        at = slider.bounding_box()
        page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
        page.mouse.down()
        page.mouse.move(at["x"] + at["width"] - 2, at["y"] + at["height"] / 2, steps=30)
        page.mouse.up()

    assert box["height"] >= 24
    visit.most_in_flight.clear()
    assert changes(visit, "#traverse img", slide)
    assert visit.most_in_flight["decode"] == 1
    assert float(page.locator("#traverse output").first.text_content()) > 2.5
    run_curl(tmp_path, copied(visit, "traverse", "curl"))
    np.testing.assert_array_equal(
        pixels((tmp_path / "decoded.png").read_bytes()), shown(visit, "#traverse img")
    )  # the newest position won
    slider.focus()
    assert changes(visit, "#traverse img", lambda: page.keyboard.press("Home"))
    back = page.get_by_role("button", name="Back to the picture")
    assert changes(visit, "#traverse img", back.click)


def test_unusual_image_is_traversed(visit):
    """The encoder extrapolates: latents of a white image lie beyond what the service traverses."""
    file = io.BytesIO()
    Image.new("L", (28, 28), 255).save(file, "PNG")
    image = {"name": "white.png", "mimeType": "image/png", "buffer": file.getvalue()}
    visit.page.locator("#file").set_input_files(image)
    visit.settle()
    numbers = visit.page.locator("#traverse output").all_text_contents()
    assert max(abs(float(number)) for number in numbers) > 10
    expect(visit.page.locator("#traverse .trouble")).to_be_hidden()
    assert visit.page.locator("#traverse .sliders input").first.get_attribute("max") == "10"


def test_samples_follow_seed_temperature_and_label(visit, tmp_path):
    page = visit.page
    seed = page.get_by_label("Seed", exact=True)

    def hanging():
        return page.locator("#samples img").evaluate_all("images => images.map(image => image.src)")

    def choose(act):
        act()
        visit.settle()
        return hanging()

    before = hanging()
    assert choose(lambda: seed.fill("8")) != before
    assert choose(lambda: seed.fill("7")) == before
    choose(page.get_by_role("button", name="New seed").click)
    assert seed.input_value() != "7"
    choose(lambda: seed.fill("7"))
    assert choose(lambda: page.get_by_label("Temperature").fill("0.3")) != before
    run_curl(tmp_path, copied(visit, "samples", "curl"))
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.width > 6 * 28
    seed.fill("-1")  # is not sent
    assert hanging() == choose(lambda: None)
    assert changes(visit, "[data-is=reconstruction]", page.locator("#samples button").nth(2).click)


def test_interpolation_follows_its_slider(visit, tmp_path):
    page = visit.page
    ends = page.locator("#interpolate fieldset")
    ends.nth(1).get_by_role("radio").nth(3).focus()
    screen = "#interpolate [data-is=numbers]"
    assert changes(visit, screen, lambda: page.keyboard.press("ArrowRight"))
    scrubber = page.get_by_label("How far")
    scrubber.focus()
    assert changes(visit, screen, lambda: page.keyboard.press("Home"))
    start = shown(visit, screen)
    np.testing.assert_array_equal(start, shown(visit, "#interpolate [data-is=pixels]"))
    assert changes(visit, screen, lambda: page.keyboard.press("End"))
    scrubber.fill("12")
    assert (shown(visit, screen) != shown(visit, "#interpolate [data-is=pixels]")).any()
    visit.screenshot("interpolate", "#interpolate")
    run_curl(tmp_path, copied(visit, "interpolate", "curl"))
    with Image.open(tmp_path / "interpolation.gif") as film:
        assert film.n_frames > 2


def test_interpolation_has_two_ends_when_the_samples_come_last(visiting):
    visit = visiting()
    late = []
    visit.page.route("**/sample?*n=48*", lambda route: late.append(route))
    visit.page.goto(visit.url)
    visit.page.locator("#describe .facts dd").first.wait_for()
    late[0].continue_()
    visit.page.locator("#samples li").first.wait_for()
    visit.settle()
    ends = visit.page.locator("#interpolate fieldset")
    chosen = [ends.nth(end).locator(":checked + img").get_attribute("alt") for end in range(2)]
    assert chosen == ["your picture", "sample 2"]


@pytest.mark.parametrize("model", ["mnist@1", "colour@1", "photos@1"])
def test_every_recipe_runs(visit, tmp_path, model):
    page = visit.page
    page.locator("#model").select_option(label=model)
    visit.settle()
    panels = page.locator("section:has(.recipe summary:visible)").evaluate_all(
        "all => all.map(each => each.id)"
    )
    assert len(panels) == (4 if model == "colour@1" else 5)  # colour@1 has no map
    for panel in panels:
        assert page.locator(f"#{panel} .trouble").text_content() == ""
        run_curl(tmp_path, copied(visit, panel, "curl"))
        assert run(tmp_path, sys.executable, "-c", copied(visit, panel, "Python"))


def test_recipes_follow_the_controls(visit, explored, tmp_path):
    page = visit.page
    sample = httpx.get(f"{explored}sample?n=1&seed=11", headers={"Accept": "image/png"}).content
    (tmp_path / "it's a digit.png").write_bytes(sample)
    page.locator("#file").set_input_files(tmp_path / "it's a digit.png")
    page.locator("[name=label]").select_option("7")
    page.locator("[name=prior]").select_option("mixture")
    page.locator("[name=method]").select_option("lerp")
    visit.settle()
    expected = {
        "describe": "it's a digit.png",
        "samples": 'label="7", prior="mixture"',
        "interpolate": '"lerp"',
    }
    for panel, text in expected.items():
        run_curl(tmp_path, copied(visit, panel, "curl"))
        code = copied(visit, panel, "Python")
        assert text in code
        run(tmp_path, sys.executable, "-c", code)


def test_selecting_another_model_explains_what_it_lacks(visit):
    page = visit.page
    page.locator("#model").select_option(label="colour@1")
    visit.settle()
    expect(page.locator("#describe .facts")).to_contain_text("colour@1 was published without a calibration")
    expect(page.locator("#map .absent")).to_contain_text("colour@1 was published without a map")
    expect(page.locator("#about")).to_contain_text("10 × 12 in colour, 24 numbers")
    expect(page.get_by_label("Pen")).to_be_visible()
    assert changes(visit, "[data-is=reconstruction]", lambda: draw(visit, (0.2, 0.2), (0.8, 0.8)))
    visit.screenshot("colour")
    page.locator("#model").select_option(label="mnist@1")
    visit.settle()
    expect(page.locator("#map canvas")).to_be_visible()


def test_every_control_is_reachable_by_keyboard(visit):
    page = visit.page
    page.evaluate("document.body.focus()")
    wanted = page.evaluate(
        """[...document.querySelectorAll("a, button, select, input, summary, [tabindex='0']")]
            .filter((each) => each.checkVisibility() && (each.type !== "radio" || each.checked)).length"""
    )
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            """() => {
                const element = document.activeElement;
                const outlined = element.closest(".button")
                    ?? element.parentElement.querySelector(":checked + .picture") ?? element;
                if (element === document.body) return ["", true];
                window.reached ??= [];
                if (!window.reached.includes(element)) window.reached.push(element);
                return [window.reached.indexOf(element), getComputedStyle(outlined).outlineStyle !== "none"];
            }"""
        )
        assert seen[1], f"the focus of element {seen[0]} is invisible"
        reached.add(seen[0])
    assert len(reached - {""}) == wanted


def test_page_asks_for_an_api_key(visiting, tmp_path):
    make_bundle(tmp_path, held_out=0)
    (tmp_path / "keys").write_text("first-key-of-this-test\n")
    with live.serving(tmp_path, "--api-keys-file", str(tmp_path / "keys")) as url:
        visit = visiting(url=f"{url}/")
        page = visit.page
        page.goto(visit.url)
        expect(page.locator("#trouble")).to_contain_text("key")
        assert "401" in visit.complaints.pop()
        page.get_by_label("API key").fill("first-key-of-this-test")
        page.keyboard.press("Enter")
        page.locator("#samples li").first.wait_for()
        visit.settle()
        expect(page.locator("#trouble")).to_be_hidden()
        expect(page.locator("#key")).to_be_hidden()
        assert '-H "Authorization: Bearer $VAESERVE_API_KEY"' in copied(visit, "samples", "curl")
        assert "first-key" not in page.content()


def test_lost_service_is_reported(visit):
    visit.page.context.set_offline(True)
    visit.page.get_by_role("button", name="New seed").click()
    expect(visit.page.locator("#samples .trouble")).to_have_text(
        "The service does not answer. Is it still running?"
    )
    visit.page.context.set_offline(False)
    visit.page.get_by_role("button", name="New seed").click()
    expect(visit.page.locator("#samples .trouble")).to_be_hidden()
    assert "ERR_INTERNET_DISCONNECTED" in visit.complaints.pop()
