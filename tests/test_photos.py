"""The figures of the comparison on photographs, its table, and that it trains each row once."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch

from benchmarks import photos
from benchmarks.photos import Arrays, figures
from training.data.images import from_arrays
from training.data.load import load
from training.evaluation import classifier
from training.fit import checkpoint
from vaeserve.bundle.files import read_bundle


@pytest.fixture(scope="module")
def images():
    """Noise whose brightness tells the two labels apart; no pixel is near 0 or 255."""
    labels = np.arange(300) % 2
    pixels = np.random.default_rng(0).integers(20, 120, (300, 8, 8, 3)) + 60 * labels[:, None, None, None]
    return from_arrays("noise", pixels.astype(np.uint8), labels, ("dark", "bright"))


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def originals(images, part):
    return images.pixels[getattr(images.split, part)].astype(np.float32) / np.float32(255)


def of_parts(images, means):
    return {part: means[getattr(images.split, part)] for part in ("train", "validation", "test")}


NO_MEANS = dict.fromkeys(("train", "validation", "test"), np.zeros((0, 2), np.float32))


def test_errors_of_reconstructions_are_means_over_images(images):
    test = originals(images, "test")
    exact = figures(Arrays(NO_MEANS, test), images, None)
    assert exact == {"MSE": 0, "PSNR": 100, "SSIM": pytest.approx(1)}
    off = np.where(np.arange(len(test)) % 2, 0.1, 0.2).astype(np.float32)
    shares = (off == np.float32(0.1)).mean(), (off == np.float32(0.2)).mean()
    found = figures(Arrays(NO_MEANS, test + off[:, None, None, None]), images, None)
    assert found["MSE"] == pytest.approx(shares[0] * 0.01 + shares[1] * 0.04, rel=1e-5)
    assert found["PSNR"] == pytest.approx(shares[0] * 20 + shares[1] * 20 * math.log10(5), rel=1e-5)
    assert found["SSIM"] < 0.99


def test_bits_are_rate_and_the_mass_of_each_pixel_under_the_error_on_validation(images):
    validation, test = originals(images, "validation"), originals(images, "test")
    rate = np.linspace(100, 300, len(test))
    arrays = Arrays(NO_MEANS, test, rate, (validation + np.float32(0.05), test + np.float32(0.02)))

    def below(x):  # the normal distribution function for σ = 0.05, the error on validation
        return 0.5 * (1 + math.erf(x / 0.05 / math.sqrt(2)))

    # Every pixel of a test image is 0.02 below its mean, in a bin of width 1/255.
    mass = below(-0.02 + 0.5 / 255) - below(-0.02 - 0.5 / 255)
    expected = 200 / (8 * 8 * 3 * math.log(2)) - math.log2(mass)
    assert figures(arrays, images, None)["bits/dim"] == pytest.approx(expected, rel=1e-4)


def test_embeddings_and_samples_are_judged_by_the_labels(images):
    scorer, test = classifier.train(images, 0), originals(images, "test")
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((300, 2)).astype(np.float32)
    made = {"FD": images.pixels[images.split.test], "FD N": rng.integers(0, 256, (30, 8, 8, 3), np.uint8)}
    apart = of_parts(images, 0.1 * noise + images.labels[:, None].astype(np.float32))
    good = figures(Arrays(apart, test, made=made), images, scorer)
    assert good["probe"] == good["5-NN"] == 1
    assert good["FD"] == pytest.approx(0, abs=1e-6 * good["FD N"])
    bad = figures(Arrays(of_parts(images, noise), test), images, scorer)
    assert bad["probe"] < 0.9
    assert bad["5-NN"] < 0.9
    assert bad.keys() == {"MSE", "PSNR", "SSIM", "probe", "5-NN"}


def test_the_table_is_what_the_files_say(tmp_path):
    whole = {"MSE": 0.0123456, "PSNR": 19.087, "SSIM": 0.5, "probe": 0.9, "5-NN": 0.875}
    whole |= {"FD": 12.34, "FD N": 1234.56, "bits/dim": 4.5678, "minutes": 29.96}
    (tmp_path / "ours.json").write_text(json.dumps(whole))
    (tmp_path / "PCA.json").write_text('{"MSE": 0.00617284, "PSNR": 22.1, "SSIM": 0.75, "minutes": 0.01}')
    (tmp_path / "set.json").write_text('{"FD": 3.21}')
    assert photos.table(tmp_path).splitlines() == [
        "| | MSE | PSNR | SSIM | probe | 5-NN | FD | bits/dim | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
        "| ours | 0.01235 | 19.09 | 0.5000 | 0.900 | 0.875 | 12.3 (1234.6) | 4.568 | 30.0 |",
        "| PCA | 0.00617 | 22.10 | 0.7500 | – | – | – | – | 0.0 |",
        "",
        "FD of real training images: 3.2",
        "MSE of ours over that of PCA: 2.000",
    ]


def run(out, *more):
    """What the command prints on digits, after three seconds of training for each row."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        photos.main(["digits", "--minutes", "0.05", "--out", str(out), *more])
    return said.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("photos")
    return out, run(out)


def row(out, name):
    return json.loads((out / "digits" / f"{name}.json").read_text())


@pytest.mark.heavy  # trains five models, 40 s
def test_figures_of_ours_are_those_on_the_card_of_its_model(done):
    """They come from other code: that of the evaluation, which measures the published graphs."""
    out, _ = done
    metrics = read_bundle(out / "digits/models/digits/1").manifest.metrics
    names = {"PSNR": "psnr", "SSIM": "ssim", "probe": "linear_probe", "5-NN": "knn5"}
    expected = {name: metrics[key].value for name, key in names.items()}
    expected |= {"MSE": metrics["mse"].value, "bits/dim": metrics["bits_per_dim"].value}
    expected |= {"FD": metrics["frechet"].value, "FD N": metrics["frechet_normal"].value}
    found = row(out, "ours")
    assert 0.03 < found.pop("minutes") < 5
    assert found == pytest.approx(expected, rel=0.02)
    of_pca = row(out, "PCA")
    assert of_pca["probe"] == pytest.approx(metrics["linear_probe_pca"].value)
    assert of_pca["5-NN"] == pytest.approx(metrics["knn5_pca"].value)
    # Pixels outside [0, 1] are clipped here, so it is better.
    assert 0.7 * metrics["mse_pca"].value < of_pca["MSE"] < metrics["mse_pca"].value


@pytest.mark.heavy  # trains five models, 40 s
def test_other_rows_have_the_latents_of_ours_and_the_autoencoder_its_last_weights(done, digits):
    out, _ = done
    last = checkpoint.latest(out / "digits/without-rate")
    network, state = checkpoint.load(last)
    assert state["step"] == state["total_steps"]
    assert state["config"]["beta"] == 0
    of_ours = checkpoint.read_state(checkpoint.latest(out / "digits/ours"))["config"]
    assert all(state["config"][name] == of_ours[name] for name in ("latent", "epochs", "augmentation"))
    test = torch.from_numpy(originals(digits, "test")).permute(0, 3, 1, 2)
    with torch.no_grad():
        restored = network.decoder(network.encoder(test).mean).sigmoid()
    mse = float((restored - test).square().mean())
    assert row(out, "without-rate")["MSE"] == pytest.approx(mse, rel=1e-4)
    learned = row(out, "PyTorch-VAE")
    assert learned["MSE"] < 0.06  # that of the mean image is 0.07
    assert learned.keys() == row(out, "ours").keys()


@pytest.mark.heavy  # trains five models, 40 s
def test_a_row_that_is_there_is_not_trained_again(done):
    out, printed = done
    files = [out / "digits" / f"{name}.json" for name in ("ours", "without-rate", "PCA", "PyTorch-VAE")]
    cells = {line.split(" | ")[0]: line for line in printed.splitlines() if line.startswith("| ")}
    assert len(cells) == 1 + len(files)
    assert f"| {row(out, 'ours')['MSE']:.5f} |" in cells["| ours"]
    files[0].write_text(json.dumps(row(out, "ours") | {"MSE": 0.54321}))
    files[2].unlink()
    before = [file.stat().st_mtime_ns for file in files if file.exists()]
    again = run(out)
    assert "| ours | 0.54321 |" in again
    assert cells["| PCA"].rpartition(" | ")[0] in again
    assert [file.stat().st_mtime_ns for file in (files[0], files[1], files[3])] == before
    assert not (out / "digits/models/digits/2").exists()


@pytest.mark.heavy  # trains five models, 40 s
def test_rows_that_are_not_comparable_are_refused(done, tmp_path):
    out, _ = done
    with pytest.raises(SystemExit, match="other --minutes"):
        photos.main(["digits", "--minutes", "7", "--out", str(out)])
    with pytest.raises(SystemExit, match="row `ours` first"):
        run(tmp_path, "--rows", "PCA")
