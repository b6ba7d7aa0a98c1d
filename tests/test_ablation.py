"""The differences that the ablation makes are the ones that its rows are named after."""

import math

import pytest
import torch

from benchmarks import ablation
from training import networks, objective
from training.config import TrainConfig
from training.networks import Output, Posterior, Residual

CONFIG = TrainConfig(image_size=(8, 8), channels=1, latent=3, width=16, likelihood="gaussian")


def test_the_row_of_sigma_1_trains_with_it_and_is_validated_with_the_one_that_was_measured():
    torch.manual_seed(0)
    images, logits = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    z = torch.randn(2, 3)
    output = Output(logits, Posterior(z, torch.zeros(2, 3)), z)
    squares = (images - logits.sigmoid()).square().sum((1, 2, 3))
    found, total = ablation.unit_variance("gaussian", output, images)
    torch.testing.assert_close(found[:, 0], squares / 2 + 32 * math.log(2 * math.pi))
    assert float(total) == pytest.approx(float(squares.sum()), rel=1e-6)
    measured = torch.tensor(0.25)
    given = ablation.unit_variance("gaussian", output, images, measured)[0]
    torch.testing.assert_close(given[:, 0], objective.gaussian(squares, 64, measured))


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
    assert networks.RESIDUALS["pre"] is Residual
    x, block = torch.randn(1, 16, 4, 4), ablation.NormedResidual(16)
    added = block.plain.last.bias[:, None, None].expand_as(x)  # no more at the start, as without norms
    torch.testing.assert_close(block(x) - x, added)
