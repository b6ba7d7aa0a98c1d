"""From a run to a published bundle with its card, by the functions and by the commands."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.live import serving
from training.cli import app
from training.data import named as sets
from training.data.images import DataError, Subset
from training.publishing.card import CAPTIONS
from training.publishing.held_out import scores
from training.publishing.publish import complete, publish_checkpoint
from vaeserve.bundle.files import read_bundle
from vaeserve.bundle.repository import open_engine

VAE_TRAIN = Path(sys.executable).with_name("vae-train")


@pytest.fixture(scope="module")
def published(run, digits, tmp_path_factory):
    return publish_checkpoint(
        run.checkpoint, digits, tmp_path_factory.mktemp("models"), run.history, say=lambda _: None
    )


def command(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_what_is_published_loads_and_carries_its_figures(published, run):
    engine = open_engine(published)
    assert engine.manifest.reference == "digits@1"
    assert engine.manifest.metrics["elbo"].n == 164
    assert engine.manifest.training.config["epochs"] == run.config.epochs


def test_the_card_has_every_picture_and_figure_that_it_names(published):
    manifest = read_bundle(published).manifest
    text = (published / "README.md").read_text()
    for name in (f"{each}.png" for each in CAPTIONS):
        assert f"({name})" in text
        assert name in manifest.files
        assert np.asarray(Image.open(published / name).convert("RGBA")).std() > 5  # not an empty picture
    assert f"{manifest.metrics['mse'].value:.5f}" in text
    assert f"{manifest.metrics['linear_probe_pca'].value:.4f}" in text
    assert "CC BY 4.0" in text
    command = re.search(r"vae-train fit [^`]*", text).group().replace(" \\\n   ", "")
    assert "--data digits --epochs 10 --batch 128 " in command
    assert "--image-size 8x8 --channels 1 " in command
    assert f"N = 164, k = {manifest.metrics['iwae'].k}" in text
    assert "--iwae-k 100 --iwae-n 164" in text
    assert "here 7×7, the largest that fits" in text  # SSIM's window


def test_evaluate_computes_the_published_figures_again_and_leaves_the_bundle_alone(published, tmp_path):
    before = {path.name: path.read_bytes() for path in published.iterdir()}
    output = tmp_path / "again.json"
    result = command("evaluate", published, "--data", "digits", "-o", output)
    assert result.exit_code == 0, result.output
    again = json.loads(output.read_text())
    assert again["model"] == "digits@1"
    for name, metric in read_bundle(published).manifest.metrics.items():
        assert again["metrics"][name]["value"] == pytest.approx(metric.value, rel=1e-5), name
    assert before == {path.name: path.read_bytes() for path in published.iterdir()}


@pytest.mark.heavy
def test_export_publishes_any_checkpoint_as_the_next_version(run, tmp_path):
    for version in ("1", "2"):
        result = command("export", run.checkpoint, "--models", tmp_path)
        assert result.exit_code == 0, result.output
        assert f"published {tmp_path / 'digits' / version}" in result.output


def test_fit_trains_publishes_and_says_what_comes_next(tmp_path):
    options = ["--models", tmp_path / "models", "--run", tmp_path / "run", "--name", "mine"]
    result = command("fit", "--epochs", 1, "--width", 4, "--latent", 2, "--likelihood", "bernoulli", *options)
    assert result.exit_code == 0, result.output
    assert "published" in result.output
    assert f"vae-serve --models {tmp_path / 'models'} --default-model mine" in result.output
    manifest = read_bundle(tmp_path / "models/mine/1").manifest
    assert manifest.latent.shape == (2,)
    assert (manifest.likelihood.kind, manifest.image.levels) == ("bernoulli", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--data", "nothing"], "nothing"),
        (["fit", "--resume"], "--resume needs --run"),
        (["fit", "--resume", "--run", "nowhere"], "no run to resume"),
        (["fit", "--image-size", "28"], "write HxW"),
        (["fit", "--epochs", "0"], "epochs cannot be 0"),
        (["fit", "--name", "No Spaces"], "--name No Spaces cannot be a model's name"),
        (["fit", "--data", "mnist"], "cannot download train-images-idx3-ubyte.gz"),
        (["report", "nowhere"], "nowhere is not a run"),
        (["evaluate", "nowhere", "--data", "digits"], "cannot be read"),
        (["export", "nowhere"], "is not a checkpoint"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAESERVE_DATA", str(tmp_path))
    monkeypatch.setitem(sets.IDX_SETS, "mnist", dataclasses.replace(sets.MNIST, mirrors=()))
    result = command(*arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_any_data_is_evaluated_at_the_bundle_s_size(published, photos, tmp_path):
    """By the manifest's size, channels and fit; the message gives the size."""
    output = tmp_path / "x.json"
    few = ("--iwae-k", 2, "--iwae-n", 3)
    result = command("evaluate", published, "--data", photos, "-o", output, *few)
    assert result.exit_code == 0, result.output
    assert "resized to 8×8×1 (contain; as asked)" in result.output
    record = json.loads(output.read_text())
    assert record["data"]["name"] == "photos"
    assert record["metrics"]["iwae"]["k"] == 2
    assert record["metrics"]["iwae"]["n"] == 3
    assert len(record["kl"]) == 8


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Colour JPEGs of mixed sizes in class sub-folders, with a broken file and a text file."""
    folder = tmp_path_factory.mktemp("user") / "photos"
    rng = np.random.default_rng(0)
    for number in range(130):
        home = folder / ("cats", "dogs")[number % 2]
        home.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        image.resize(tuple(int(x) for x in rng.integers(12, 25, 2))).save(home / f"{number}.jpg")
    (folder / "dogs" / "broken.jpg").write_bytes((folder / "dogs" / "1.jpg").read_bytes()[:200])
    (folder / "notes.txt").write_text("a text file")
    return folder


@pytest.mark.heavy  # half a minute: as long as the defaults train
def test_a_folder_of_photos_is_trained_evaluated_published_and_served(photos):
    """No flag beyond --data, as in the README."""
    home = photos.parent
    done = subprocess.run(
        [VAE_TRAIN, "fit", "--data", "./photos"], cwd=home, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "130 image files in photos" in done.stderr
    assert "2 files skipped: dogs/broken.jpg, notes.txt" in done.stderr
    assert "warning: 130 images are few" in done.stderr
    (run,) = (home / "runs").iterdir()
    skipped = (run / "skipped.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in skipped] == ["dogs/broken.jpg", "notes.txt"]
    assert f"report    {run.relative_to(home) / 'report.html'}" in done.stderr
    assert "dogs/broken.jpg" in (run / "report.html").read_text()
    manifest = read_bundle(home / "models/photos/1").manifest
    assert manifest.image.channels == 3
    assert manifest.labels == ("cats", "dogs")
    assert manifest.metrics["linear_probe"].n == manifest.metrics["elbo"].n
    card = (home / "models/photos/1/README.md").read_text()
    assert "vae-train fit --data path/to/photos" in card
    assert str(home) not in card + manifest.model_dump_json()  # where it lay is the user's own affair
    with serving(home / "models") as url:
        content = (photos / "cats" / "0.jpg").read_bytes()
        sent = {"content": content, "headers": {"Content-Type": "image/jpeg"}}
        assert httpx.post(f"{url}/reconstruct", **sent).json()["model"] == "photos@1"
        assert httpx.get(f"{url}/sample?n=4&seed=1", headers={"Accept": "image/png"}).status_code == 200


def test_calibration_and_map_are_of_the_validation_images(published, digits):
    engine = open_engine(published)
    held_out = Subset(digits.pixels, digits.split.validation)
    found = scores(engine, held_out, engine.manifest.training.config["seed"])
    np.testing.assert_allclose(engine.calibration.elbo, np.sort(found.elbo), rtol=1e-5)
    plane, mean = engine.map, engine.encode(held_out[:]).mean
    np.testing.assert_allclose(plane.components @ plane.components.T, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(plane.points, (plane.latents - plane.mean) @ plane.components.T, atol=1e-3)
    nearest = np.square(plane.latents[:, np.newaxis] - mean).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(np.sort(nearest), np.arange(len(mean)))
    np.testing.assert_array_equal(plane.labels, digits.labels[digits.split.validation][nearest])
    np.testing.assert_array_equal(plane.thumbnails, held_out[:][nearest])


def test_a_bundle_is_completed_without_training(published, digits, tmp_path):
    again = complete(published, digits, tmp_path, say=lambda _: None)
    old, new = open_engine(published), open_engine(again)
    assert (again / "encoder.onnx").read_bytes() == (published / "encoder.onnx").read_bytes()
    np.testing.assert_allclose(new.calibration.surprise, old.calibration.surprise, rtol=1e-4)
    assert new.manifest.metrics == old.manifest.metrics
    with pytest.raises(DataError, match="give the data that it was trained on"):
        complete(published, dataclasses.replace(digits, digest="other"), tmp_path, say=lambda _: None)
