"""The latent size that the variance of a set asks for."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from training.data.images import from_arrays
from training.data.spectrum import FEWEST_PER_DIMENSION, LEFT, SIZES, latent_size, variance_left


def mixtures(n, rank, side=16, seed=0):
    """Images that are random mixtures of `rank` fixed patterns: uint8 [n, side, side, 1]."""
    rng = np.random.default_rng(seed)
    patterns = rng.normal(size=(rank, side * side))
    flat = rng.normal(size=(n, rank)) @ patterns
    return np.clip(128 + 100 * flat / np.abs(flat).max(), 0, 255).astype(np.uint8).reshape(n, side, side, 1)


def test_it_is_the_variance_that_pca_leaves(digits):
    left = variance_left(digits, seed=0)
    train, held_out = (
        digits.pixels[rows].reshape(len(rows), -1) / 255.0
        for rows in (digits.split.train, digits.split.validation)
    )
    for components in (1, 16, 32):
        pca = PCA(components).fit(train)
        rest = held_out - pca.inverse_transform(pca.transform(held_out))
        expected = np.square(rest).sum() / np.square(held_out - pca.mean_).sum()
        assert left[components - 1] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(("rank", "expected"), [(6, 16), (50, 64), (150, 128)])
def test_more_varied_images_get_more_latents(rank, expected):
    size, left = latent_size(from_arrays("a", mixtures(4000, rank)), seed=0)
    assert size == expected
    assert left <= LEFT


def test_a_small_set_gets_no_more_than_it_can_teach():
    size, left = latent_size(from_arrays("a", mixtures(1000, 110)), seed=0)
    assert size == 32
    assert left > LEFT
    assert SIZES[1] < 1000 * 0.8 / FEWEST_PER_DIMENSION < SIZES[2]


def test_images_of_one_colour_or_of_few_pixels_have_a_size_too():
    flat = np.arange(200, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    assert latent_size(from_arrays("flat", flat), seed=0)[0] == SIZES[0]
    same = np.zeros((200, 4, 4, 1), np.uint8)
    same[:, 0, 0, 0] = np.arange(200)
    same[::2] = 7
    assert latent_size(from_arrays("same", same[:, :, :, :].copy()), seed=0)[0] == SIZES[0]
