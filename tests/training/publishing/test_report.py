"""The report: one self-contained page for runs that are finished, running or just started."""

import base64
import html.parser
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from training.config import ConfigError, TrainConfig
from training.publishing import figures as pictures
from training.publishing import report
from training.publishing.card import fit_command
from training.publishing.publish import publish_checkpoint
from vaeserve.bundle.batched import encode
from vaeserve.bundle.engine import Engine


class Page(html.parser.HTMLParser):
    """The texts of a page, its pictures, and whatever would be fetched from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.text, self.images, self.fetched, self.open = "", {}, [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "img":
            kind, _, content = values["src"].partition(",")
            assert kind == "data:image/png;base64"
            self.images[values["alt"]] = Image.open(io.BytesIO(base64.b64decode(content)))
        elif values.keys() & {"src", "href", "srcset"} or tag in ("script", "link", "iframe"):
            self.fetched.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] != "style":
            self.text += text + "\n"


@pytest.fixture(scope="module")
def published(run, digits, tmp_path_factory):
    """A copy of the run, released."""
    copy = tmp_path_factory.mktemp("runs") / "mine"
    shutil.copytree(run.run, copy)
    checkpoint = copy / "checkpoints" / run.checkpoint.name
    publish_checkpoint(checkpoint, digits, tmp_path_factory.mktemp("models"), run.history, say=lambda _: None)
    return copy


def page_of(run):
    text = report.write(run).read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    page = Page(text)
    assert page.fetched == []
    assert page.open == []
    return page


def test_a_published_run_has_its_figures_and_every_picture(published, monkeypatch):
    monkeypatch.setattr(report, "load", None)  # the data are not needed again
    page = page_of(published)
    assert set(page.images) == {
        "reconstructions", "samples", "interpolations", "traversals", "neighbours", "map", "kl", "curves",
        "labels",
    }  # fmt: skip
    assert min(image.width for image in page.images.values()) > 200
    assert "Published as digits@1" in page.text
    metrics = json.loads((published / "report" / "evaluation.json").read_text())["metrics"]
    assert f"{metrics['mse']['value']:.5f}" in page.text
    assert f"{metrics['knn5_random']['value']:.4f}" in page.text
    assert "CC BY 4.0" in page.text
    assert "vae-train fit --data digits" in page.text


def test_an_unfinished_run_is_drawn_from_its_checkpoint_and_validation(run, digits, tmp_path, monkeypatch):
    copy = tmp_path / "going-on"
    shutil.copytree(run.run, copy, ignore=shutil.ignore_patterns("report*"))
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')  # the line that is just being written
    shown = []
    real = pictures.draw_all
    monkeypatch.setattr(
        pictures,
        "draw_all",
        lambda engine, data, rows, *rest: shown.append(rows) or real(engine, data, rows, *rest),
    )
    page = page_of(copy)
    np.testing.assert_array_equal(shown[0], digits.split.validation)
    assert "Not published" in page.text
    assert "test is untouched" in page.text
    assert {"samples", "curves", "neighbours"} <= set(page.images)
    assert "Newest figures, on validation" in page.text


def test_a_run_whose_data_have_gone_still_has_its_curves(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.run, copy, ignore=shutil.ignore_patterns("report*"))
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"data": "digits"', '"data": "gone & <lost>"'))
    page = page_of(copy)
    assert set(page.images) == {"curves"}
    assert "No pictures: the images of gone & <lost> cannot be read" in page.text


def test_a_run_that_has_just_started_has_a_page(run, tmp_path):
    shutil.copy(run.run / "config.json", tmp_path / "config.json")
    page = page_of(tmp_path)
    assert "No checkpoint yet." in page.text
    assert "Nothing has been evaluated yet." in page.text
    with pytest.raises(ConfigError, match="is not a run"):
        report.write(tmp_path / "nothing")


def test_the_nearest_training_images_are_found_and_no_others(exported, digits, monkeypatch):
    train = digits.split.train
    monkeypatch.setattr("training.data.images.PIECE", 64 * 100)  # a hundred images at a time
    found = pictures.nearest_training(digits, digits.pixels[train[[3, 500]]], 3)
    assert found[:, 0].tolist() == train[[3, 500]].tolist()
    asked = digits.pixels[digits.split.test[:5]]
    distances = np.square(
        asked.reshape(5, 1, -1).astype(float) - digits.pixels[train].reshape(1, len(train), -1)
    ).sum(axis=2)
    expected = train[np.argsort(distances, axis=1)[:, :3]]
    np.testing.assert_array_equal(pictures.nearest_training(digits, asked, 3), expected)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_pictures_are_drawn_for_any_number_of_latents_and_classes(exported, digits, d):
    rng = np.random.default_rng(0)
    means = rng.normal(size=(80, d)).astype(np.float32)
    for labels, names in ((None, None), (np.arange(80) % 40, None), (np.arange(80) % 3, ("a", "b", "c"))):
        assert pictures.latent_map(means, labels, names).startswith(b"\x89PNG")
    assert pictures.kl_bars(np.abs(rng.normal(size=d))).startswith(b"\x89PNG")


def test_traversals_leave_out_dimensions_that_say_nothing(exported, digits):
    engine: Engine = exported.engine
    posterior = encode(engine, digits.pixels[:50])
    each = posterior.kl().mean(axis=0)
    each[[0, 3]] = 0.001
    rows = [
        Image.open(io.BytesIO(pictures.traversals(engine, posterior.mean[0], values))).height
        for values in (each, np.ones(8))
    ]
    assert rows[0] == pytest.approx(rows[1] * 6 / 8, abs=12)


def test_the_command_of_a_card_repeats_every_setting_that_is_not_a_default():
    config = TrainConfig(
        name="a", epochs=3, image_size=(8, 6), precision="float32", patience=0, free_bits=0.5
    )
    command = fit_command(config.to_dict() | {"device": "cpu", "memory_limit": 5}, "my photos")
    assert command.replace(" \\\n   ", "").split(" ") == [
        *("vae-train", "fit", "--data", "'my", "photos'", "--name", "a", "--epochs", "3"),
        *("--image-size", "8x6", "--free-bits", "0.5", "--precision", "float32", "--patience", "0"),
    ]
