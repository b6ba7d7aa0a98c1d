"""A finished training is published, whatever cannot be fitted or drawn, and what is missing is said."""

import os
import re

import numpy as np
import pytest
from PIL import Image

from tests.training.runs import TINY, Watch
from training.data.images import from_arrays
from training.data.load import load
from training.evaluation import samples
from training.fit.trainer import fit
from training.publishing import figures, fit_priors
from training.publishing.lettering import drawable, font_families
from training.publishing.publish import publish_checkpoint
from training.publishing.report import write as report_of
from vaeserve.bundle.files import read_bundle
from vaeserve.bundle.repository import open_engine

FEW = {"iwae_k": 2, "iwae_n": 4}
pytestmark = pytest.mark.heavy  # whole trainings and publications, 40 s
NAMES = (b"$1_$5", b"$100_and_more", b"caf\xe9", "日本語".encode(), b"x" * 220, b"a_b^c\\frac{")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """120 images in classes whose names are mathematics to Matplotlib, not UTF-8, Japanese, or long."""
    top = os.fsencode(tmp_path_factory.mktemp("odd"))
    rng = np.random.default_rng(0)
    for number in range(240):
        place = os.path.join(top, NAMES[number % len(NAMES)])
        os.makedirs(place, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(os.fsdecode(os.path.join(place, b"%d.png" % number)))
    return os.fsdecode(top)


def published(data, tmp_path, **settings):
    said = []
    config = TINY.replace(epochs=1, batch=16, evaluate_every=None, **settings)
    run = fit(config, data, tmp_path / "run", progress=Watch())
    bundle = publish_checkpoint(run.checkpoint, data, tmp_path / "models", run.history, said.append, **FEW)
    return bundle, said


def test_a_folder_of_odd_class_names_is_trained_on_and_published(folder, tmp_path):
    data = load(folder)
    bundle, said = published(data, tmp_path)
    labels = read_bundle(bundle).manifest.labels
    assert labels == data.label_names
    assert {"$1_$5", "caf\\xe9", "日本語"} <= set(labels)
    assert all((bundle / name).is_file() for name in ("map.png", "labels.png", "README.md"))
    drawn_as_number = [line for line in said if "classes in the pictures" in line]
    lacking = "class" in drawable(labels, font_families(labels))[labels.index("日本語")]
    assert len(drawn_as_number) == lacking
    assert ("## Missing" in (bundle / "README.md").read_text()) == lacking


def test_names_are_drawn_as_they_are_not_as_mathematics():
    families = font_families(["a"])
    assert drawable(["$1_$5", "a" * 30, "\U0010fffd"], families) == (r"\$1_\$5", "a" * 24, "class 2")


def test_many_latents_and_labels_are_published_without_what_would_be_huge(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_priors, "MOST_FACTORS", 3 * 30**2)  # with more latents it takes a minute
    bundle, said = published(load(folder), tmp_path, latent=30)
    (missing,) = (line for line in said if line.startswith("published without mixtures"))
    assert re.search(r"mixtures of its [456] labels: with 30 latent dimensions .* 0\.0\d+ MB", missing)
    assert missing.removeprefix("published without ") in (bundle / "README.md").read_text()
    engine = open_engine(bundle)
    assert engine.prior.kinds == ("normal", "mixture")
    assert not engine.prior.by_label
    assert len(engine.prior.mixture.weights) <= 3


def test_pictures_of_photographs_are_small_webp_files(digits, tmp_path):
    pixels = np.repeat(digits.pixels[:300], 3, axis=3)
    bundle, _ = published(from_arrays("colour", pixels, digits.labels[:300], digits.label_names), tmp_path)
    card, report = (bundle / "README.md").read_text(), report_of(tmp_path / "run").read_text()
    for name in ("overview", "reconstructions", "samples", "curves"):
        assert f"![{name}]({name}.webp)" in card
        with Image.open(bundle / f"{name}.webp") as picture:
            assert picture.format == "WEBP"
    assert not list(bundle.glob("*.png"))
    assert report.count("data:image/webp;base64,") >= 7


@pytest.mark.parametrize(
    ("module", "name", "missing"),
    [
        (fit_priors, "fit_mixture", "the fitted mixture, so samples are drawn from N(0, I): no such luck"),
        (figures, "neighbours", "neighbours.png: no such luck"),
        (samples, "frechet", "the figures of its samples: no such luck"),
    ],
)
def test_a_part_that_fails_is_left_out_and_said(digits, run, tmp_path, monkeypatch, module, name, missing):
    def fail(*args, **kwargs):
        raise ValueError("no such luck")

    monkeypatch.setattr(module, name, fail)
    said = []
    bundle = publish_checkpoint(run.checkpoint, digits, tmp_path, run.history, said.append, **FEW)
    assert f"published without {missing}" in said
    assert f"## Missing\n\n- {missing}\n" in (bundle / "README.md").read_text()
    engine = open_engine(bundle)  # verified: every file that the manifest names is there
    assert len(engine.prior.sample(seed=0, rows=range(3))) == 3
    assert (engine.prior.kinds == ("normal",)) == (module is fit_priors)
