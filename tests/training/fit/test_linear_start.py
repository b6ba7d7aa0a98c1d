"""A new network begins as probabilistic PCA, whatever the size of the images."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from tests.training.runs import Watch
from training.config import TrainConfig, resolve
from training.data.images import from_arrays
from training.fit import linear_start
from training.fit.trainer import fit
from training.model.linear import block
from training.model.networks import as_pixels, build

SHAPES = [(16, 16, 1), (12, 20, 3), (64, 48, 1), (70, 33, 3)]


def similar(n, shape, rank=6, seed=0):
    """Images that differ from a grey one by a few smooth patterns and a little noise."""
    rng, (height, width, channels) = np.random.default_rng(seed), shape
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = np.stack([np.sin(3 * (k + 1) * x + k) * np.cos(2 * k * y) for k in range(rank)])
    patterns = waves[:, :, :, None] * rng.uniform(0.5, 1.5, (rank, 1, 1, channels))
    levels = 128 + 14 * np.tensordot(rng.standard_normal((n, rank)), patterns, 1)
    return np.clip(np.rint(levels + rng.normal(0, 1, (n, *shape))), 0, 255).astype(np.uint8)


def begun(data, latent=8, **changes):
    config = TrainConfig(width=8, latent=latent, linear=True, **changes)
    network = build(
        resolve(config, name="a", train=len(data.split.train), image=data.shape, binary=data.binary)
    )
    linear_start.start(network, data, seed=0)
    return network.eval()


@torch.no_grad()
def error(network, images):
    pixels = as_pixels(torch.from_numpy(images))
    again = torch.sigmoid(network.decoder(network.encoder(pixels).mean))
    return float((again - pixels).square().mean())


@pytest.mark.parametrize("shape", SHAPES)
def test_it_begins_with_reconstructions_as_good_as_those_of_pca(shape):
    data = from_arrays("a", similar(400, shape))
    held_out = data.pixels[data.split.validation]
    flat = data.pixels.reshape(len(data.pixels), -1) / 255
    pca = PCA(8).fit(flat[data.split.train])
    test = flat[data.split.validation]
    expected = np.square(pca.inverse_transform(pca.transform(test)) - test).mean()
    if block(*shape[:2]) == (1, 1):
        assert error(begun(data), held_out) < 2 * expected  # patterns are not quite linear in the logits
    spread = np.square(test - test.mean(axis=0)).mean()
    assert error(begun(data), held_out) < 0.1 * spread


def test_its_posterior_is_that_of_probabilistic_pca():
    """Latents have about unit variance with their noise, and the more of it the less an image says."""
    data = from_arrays("a", similar(2000, (16, 16, 1), rank=3))
    mean, logvar = begun(data, latent=8).encoder(as_pixels(torch.from_numpy(data.pixels)))
    total = mean.var(0) + logvar.exp().mean(0)
    np.testing.assert_allclose(total.detach(), 1, atol=0.1)
    assert (logvar[0, :3] < -3).all()
    assert (logvar[0, 3:] > -1).all()


def test_few_images_and_few_pixels_leave_the_other_latents_unused():
    data = from_arrays("a", similar(120, (4, 4, 1)))
    network = begun(data, latent=32)
    mean, logvar = network.encoder(as_pixels(torch.from_numpy(data.pixels)))
    assert mean[:, 16:].abs().max() == 0
    assert logvar[:, 16:].abs().max() == 0


def test_black_and_white_images_have_finite_weights():
    pixels = np.where(similar(300, (16, 16, 1)) > 128, 255, 0).astype(np.uint8)
    pixels[:, :3] = 0
    data = from_arrays("a", pixels)
    network = begun(data)
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert error(network, pixels) < pixels.var() / 255**2


def test_a_run_begins_there_and_one_of_an_earlier_version_has_no_linear_path(tmp_path):
    data = from_arrays("a", similar(400, (16, 16, 1)))
    config = TrainConfig(width=8, latent=8, epochs=1, precision="float32", augment="none")
    first = fit(config, data, tmp_path / "new", progress=Watch())
    without = fit(config.replace(linear=False), data, tmp_path / "old", progress=Watch())
    assert first.config.linear is True
    errors = [run.history[-1]["validation"]["mse"] for run in (first, without)]
    assert errors[0] < 0.2 * errors[1]
    path = tmp_path / "old" / "config.json"
    path.write_text(path.read_text().replace('"linear": false', '"linear": null'))
    resumed = fit(config.replace(epochs=2), data, tmp_path / "old", resume=True, progress=Watch())
    assert resumed.config.linear is False
