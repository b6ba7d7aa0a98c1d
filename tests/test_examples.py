"""Each program of examples/ runs on scikit-learn's digits, with the shipped model."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.checkout import ROOT
from tests.live import serving
from vaeserve import Client
from vaeserve.bundle.files import Draft, publish, read_bundle
from vaeserve.bundle.prior import Mixture, write_prior

PER_LABEL = 40


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """400 digits as PNG files of MNIST's size, named after their label."""
    folder = tmp_path_factory.mktemp("digits")
    images, labels = load_digits(return_X_y=True)
    seen = Counter()
    for pixels, label in zip(images.reshape(-1, 8, 8), labels, strict=True):
        seen[label] += 1
        if seen[label] <= PER_LABEL:
            small = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
            whole = Image.new("L", (28, 28))
            whole.paste(small.resize((20, 20), Image.Resampling.BICUBIC), (4, 4))
            whole.save(folder / f"{label}-{seen[label]:02d}.png")
    return folder


@pytest.fixture(scope="module")
def service(digits, tmp_path_factory):
    """The shipped model, with one Gaussian for each label of the digits as its labelled prior."""
    work = tmp_path_factory.mktemp("models")
    shipped = read_bundle(ROOT / "models/mnist/2")
    draft = work / "draft"
    shutil.copytree(shipped.path, draft)
    files = sorted(digits.iterdir())
    with serving(shipped.path) as url, Client(url) as client:
        means = client.encode(files).mean
    labels = np.array([int(file.name[0]) for file in files])
    by_label = {label: gaussian(means[labels == label]) for label in range(10)}
    write_prior(draft / "prior.npz", gaussian(means), by_label)
    changes = {"labels": tuple(map(str, range(10))), "files": {}}
    publish(work / "models", "mnist", Draft(draft, shipped.manifest.model_copy(update=changes)))
    with serving(work / "models") as url:
        yield url


def gaussian(means):
    covariance = np.cov(means, rowvar=False) + 0.05 * np.eye(means.shape[1])
    factor = np.linalg.cholesky(covariance).astype(np.float32)
    return Mixture(np.ones(1), means.mean(axis=0, keepdims=True), factor[np.newaxis])


def run(name, service, *arguments):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        env=os.environ | {"VAESERVE_URL": service, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_clusters_are_mostly_of_one_digit(service, digits, tmp_path):
    said = run("cluster.py", service, digits, tmp_path / "clusters.png")
    rows = [[name[0] for name in line.split()[1:]] for line in said.splitlines()]
    assert len(rows) == 10
    pure = [Counter(row).most_common(1)[0][1] / len(row) for row in rows]
    assert np.mean(pure) > 0.6
    with Image.open(tmp_path / "clusters.png") as picture:
        assert picture.size == (13 * 28, 10 * 28)


def test_anomalies_are_the_images_that_are_not_digits(service, digits, tmp_path):
    folder = shutil.copytree(digits, tmp_path / "digits")
    rng = np.random.default_rng(0)
    odd = {
        "noise": rng.integers(0, 256, (28, 28)),
        "stripes": np.tile([0, 0, 255, 255], (28, 7)),
        "white": np.full((28, 28), 255),
    }
    for name, pixels in odd.items():
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")
    said = run("anomalies.py", service, folder).splitlines()
    assert {Path(line.split()[1]).stem for line in said[:3]} == set(odd)
    assert len(said) < 20


def test_the_sheet_shows_each_label(service, digits, tmp_path):
    assert "10 images of each of 0, 1, 2" in run("labelled_sheet.py", service, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        sheet = np.asarray(picture)
    assert sheet.shape == (280, 280)
    drawn = sheet.reshape(10, 28, 10, 28).swapaxes(1, 2).reshape(-1, 28, 28)
    files = sorted(digits.iterdir())
    with Client(service) as client:
        known, new = client.encode(files).mean, client.encode(drawn).mean
    nearest = np.linalg.norm(new[:, np.newaxis] - known, axis=2).argmin(axis=1)
    found = np.array([int(files[index].name[0]) for index in nearest])
    assert (found == np.repeat(np.arange(10), 10)).mean() > 0.7
