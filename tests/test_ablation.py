"""The differences that the ablation makes are the ones that its rows are named after."""

import math

import numpy as np
import pytest
import torch

from benchmarks import ablation
from training.config import TrainConfig
from training.data import images as data
from training.fit.batches import Pixels
from training.fit.validation import evaluate
from training.model import networks
from training.model.likelihoods import LIKELIHOODS
from training.model.networks import Output, Posterior, Residual

GAUSSIAN = LIKELIHOODS["gaussian"]
CONFIG = TrainConfig(image_size=(8, 8), channels=1, latent=3, batch=128, width=16, likelihood="gaussian")


def test_the_row_of_sigma_1_trains_with_it_and_is_validated_with_the_one_that_was_measured():
    torch.manual_seed(0)
    images, logits = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    z = torch.randn(2, 3)
    output = Output(logits, Posterior(z, torch.zeros(2, 3)), z)
    squares = (images - logits.sigmoid()).square().sum((1, 2, 3))
    found, total = ablation.unit_variance(GAUSSIAN, output, images, levels=None)
    torch.testing.assert_close(found[:, 0], squares / 2 + 32 * math.log(2 * math.pi))
    assert float(total) == pytest.approx(float(squares.sum()), rel=1e-6)
    measured = torch.tensor(0.25)
    given = ablation.unit_variance(GAUSSIAN, output, images, levels=None, variance=measured)[0]
    torch.testing.assert_close(given[:, 0], -GAUSSIAN.log_prob(logits, images, measured.sqrt(), None))


def test_networks_differ_in_what_is_named_alone():
    plain, random = networks.build(CONFIG), ablation.random_branches(CONFIG)
    changed = {
        name
        for (name, before), after in zip(plain.named_parameters(), random.parameters(), strict=True)
        if not torch.equal(before, after)
    }
    branches = {name for name, module in plain.named_modules() if isinstance(module, Residual)}
    assert {name.rpartition(".last.")[0] for name in changed} == branches
    assert len(branches) == 2

    normed = ablation.with_norms(CONFIG)
    groups = [module.num_groups for module in normed.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert groups == [2, 2, 2, 2]
    assert networks.MOST_NORM_FREE == 2


def test_the_elbo_in_the_table_is_the_one_that_training_is_judged_by_where_both_are_masses():
    config = CONFIG.replace(likelihood="bernoulli", latent=3)
    pixels = np.random.default_rng(0).choice([0, 255], (200, 8, 8, 1)).astype(np.uint8)
    images = data.from_arrays("noise", pixels, np.arange(200) % 2)
    network = networks.build(config).eval()
    found = ablation.figures(network, images, config)
    expected = evaluate(network, Pixels(images, torch.device("cpu")), images.split.test, config)
    for name in ("elbo", "rate", "mse"):
        key = {"elbo": "ELBO", "mse": "MSE"}.get(name, name)
        assert found[key] == pytest.approx(expected[name], rel=1e-5)


def test_a_gaussian_is_counted_as_the_mass_of_a_pixels_level():
    config = CONFIG.replace(levels=256)
    network = networks.build(config)
    network.variance.fill_(0.25)
    images = torch.full((1, 1, 8, 8), 100 / 255)
    found = ablation.masses(network, config, images, images)
    # The bin is narrow beside σ: its mass is its width times the density at its middle.
    assert found == pytest.approx(64 * (math.log(1 / 255) - 0.5 * math.log(2 * math.pi * 0.25)), rel=1e-5)
