"""From a run to a published bundle with its card, by the functions and by the commands."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from service.runtime.bundle import read_bundle
from service.runtime.repository import open_engine
from training.__main__ import app
from training.release import release


@pytest.fixture(scope="module")
def published(run, digits, tmp_path_factory):
    return release(run.checkpoint, digits, tmp_path_factory.mktemp("models"), run.history, say=lambda _: None)


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
    for name in ("overview.png", "samples.png", "map.png", "curves.png"):
        assert f"({name})" in text
        assert name in manifest.files
        assert np.asarray(Image.open(published / name).convert("L")).std() > 5  # not an empty picture
    assert f"{manifest.metrics['mse'].value:.5f}" in text
    assert f"{manifest.metrics['linear_probe_pca'].value:.4f}" in text
    assert "CC BY 4.0" in text


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


def test_export_publishes_any_checkpoint_as_the_next_version(run, tmp_path):
    for version in ("1", "2"):
        result = command("export", run.checkpoint, "--models", tmp_path)
        assert result.exit_code == 0, result.output
        assert f"published {tmp_path / 'digits' / version}" in result.output


def test_fit_trains_publishes_and_says_what_comes_next(tmp_path):
    options = ["--models", tmp_path / "models", "--run", tmp_path / "run", "--name", "mine"]
    result = command("fit", "--epochs", 1, "--width", 4, "--latent", 2, *options)
    assert result.exit_code == 0, result.output
    assert "published" in result.output
    assert f"vae-serve --models {tmp_path / 'models'} --default-model mine" in result.output
    assert read_bundle(tmp_path / "models/mine/1").manifest.latent.shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--data", "nothing"], "nothing"),
        (["fit", "--resume"], "--resume needs --run"),
        (["fit", "--resume", "--run", "nowhere"], "no run to go on with"),
        (["fit", "--image-size", "28"], "write HxW"),
        (["fit", "--epochs", "0"], "epochs cannot be 0"),
        (["evaluate", "nowhere", "--data", "digits"], "cannot be read"),
        (["export", "nowhere"], "is no checkpoint"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command(*arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_bundle_is_evaluated_only_on_images_of_its_shape(published, tmp_path, monkeypatch):
    import training.data

    other = training.data.from_arrays(
        "other", np.random.default_rng(0).integers(0, 256, (200, 9, 8, 1), np.uint8)
    )
    monkeypatch.setattr(training.data, "load", lambda source: other)
    result = command("evaluate", published, "--data", "other", "-o", tmp_path / "x.json")
    assert result.exit_code == 1
    assert "digits@1 takes images of 8×8×1, other has 9×8×1" in result.output
