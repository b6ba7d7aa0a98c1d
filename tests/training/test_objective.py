"""The objective against scipy, and against what it must be on tensors small enough to do by hand."""

import math

import pytest
import scipy.integrate
import scipy.stats
import torch

from training import objective
from training.networks import Posterior


def squares(mean, pixels):
    """Per image."""
    return (pixels - mean).square().flatten(1).sum(1)


def test_rate_is_the_kl_divergence_by_quadrature():
    means, logvars = [-1.5, 0.0, 0.3, 4.0], [-3.0, 0.0, 1.0, -0.5]
    expected = []
    for mean, logvar in zip(means, logvars, strict=True):
        q, p = scipy.stats.norm(mean, math.exp(logvar / 2)), scipy.stats.norm()
        wide = 12 * math.exp(logvar / 2)
        expected.append(
            scipy.integrate.quad(
                lambda z, q=q, p=p: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), mean - wide, mean + wide
            )[0]
        )
    rate = objective.rate(Posterior(torch.tensor([means]), torch.tensor([logvars])))
    assert rate.shape == (1, 4)
    assert rate[0].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_bernoulli_is_scipys_summed_over_pixels():
    logits = torch.randn(3, 1, 4, 5, generator=torch.Generator().manual_seed(0)) * 3
    pixels = (torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    expected = -scipy.stats.bernoulli.logpmf(pixels, torch.sigmoid(logits.double())).sum((1, 2, 3))
    assert objective.bernoulli(logits, pixels).tolist() == pytest.approx(expected, rel=1e-5)


def test_bernoulli_is_finite_for_certain_and_wrong_logits():
    assert objective.bernoulli(torch.full((1, 1, 1, 2), 1000.0), torch.zeros(1, 1, 1, 2)).item() == 2000


def test_gaussian_is_scipys_summed_over_pixels():
    mean = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    pixels = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    expected = -scipy.stats.norm(mean, 0.3).logpdf(pixels).sum((1, 2, 3))
    assert objective.gaussian(squares(mean, pixels), 60, torch.tensor(0.09)).tolist() == pytest.approx(
        expected, rel=1e-5
    )


def test_the_optimal_variance_is_a_minimum_of_the_distortion():
    mean, pixels = torch.rand(8, 1, 6, 6), torch.rand(8, 1, 6, 6)
    errors = squares(mean, pixels)
    best = objective.optimal_variance(errors.sum(), pixels.numel())
    at = {factor: objective.gaussian(errors, 36, best * factor).mean().item() for factor in (0.95, 1, 1.05)}
    assert at[1] < min(at[0.95], at[1.05])
    # Closed form at the optimum: D/2·(1 + log 2πσ²).
    assert at[1] == pytest.approx(18 * (1 + math.log(2 * math.pi * best.item())), rel=1e-5)


def test_perfect_reconstructions_do_not_make_the_density_infinite():
    variance = objective.optimal_variance(torch.tensor(0.0), 64)
    assert variance.item() == pytest.approx(math.exp(-12))
    assert math.isfinite(objective.gaussian(torch.zeros(1), 64, variance).item())


def test_loss_sums_over_pixels_and_latents_and_averages_over_images():
    """Two images, logits 0 (so every pixel costs log 2), mean 1 and logvar 0 (so every latent costs ½)."""
    logits, pixels = torch.zeros(2, 1, 3, 4), torch.ones(2, 1, 3, 4)
    posterior = Posterior(torch.ones(2, 5), torch.zeros(2, 5))
    terms, squares = objective.terms("bernoulli", logits, pixels, posterior)
    assert terms.distortion.tolist() == pytest.approx([12 * math.log(2)] * 2)
    assert terms.rate.shape == (2, 5)
    assert squares.item() == pytest.approx(24 * 0.25)
    assert objective.loss(terms, 1).item() == pytest.approx(12 * math.log(2) + 2.5)
    assert objective.loss(terms, 0.1).item() == pytest.approx(12 * math.log(2) + 0.25)


def test_gaussian_terms_take_the_batch_optimum_or_the_variance_they_are_given():
    logits, pixels = torch.zeros(2, 1, 3, 4), torch.ones(2, 1, 3, 4)  # every error is ½
    posterior = Posterior(torch.zeros(2, 5), torch.zeros(2, 5))
    optimum, _ = objective.terms("gaussian", logits, pixels, posterior)
    assert optimum.distortion.tolist() == pytest.approx([6 * (1 + math.log(2 * math.pi * 0.25))] * 2)
    given, _ = objective.terms("gaussian", logits, pixels, posterior, torch.tensor(1.0))
    assert given.distortion.tolist() == pytest.approx([6 * (0.25 + math.log(2 * math.pi))] * 2)


def test_the_gaussian_gradient_is_that_of_half_d_log_mse():
    """What σ at its optimum amounts to (σ-VAE, equation 6), although no gradient goes through σ."""
    logits = torch.randn(4, 1, 3, 3, requires_grad=True)
    pixels = torch.rand(4, 1, 3, 3)
    posterior = Posterior(torch.zeros(4, 1), torch.zeros(4, 1))
    ours = torch.autograd.grad(
        objective.loss(objective.terms("gaussian", logits, pixels, posterior)[0], 1), logits
    )
    mse = (pixels - torch.sigmoid(logits)).square().mean()
    theirs = torch.autograd.grad(4.5 * torch.log(mse), logits)
    torch.testing.assert_close(ours, theirs)


def test_binarisation_is_fresh_seeded_and_keeps_black_and_white():
    grey = torch.full((1, 1, 100, 100), 0.3)
    first, second = torch.rand(2, *grey.shape, generator=torch.Generator().manual_seed(0))
    once, again = objective.binarise(grey, first), objective.binarise(grey, second)
    assert set(once.unique().tolist()) == {0, 1}
    assert not once.equal(again)
    assert once.equal(objective.binarise(grey, first))
    assert once.mean().item() == pytest.approx(0.3, abs=0.02)
    white = torch.tensor([0.0, 1.0])
    for extreme in (0.0, 1 - 2**-24):  # the least and the greatest that torch.rand gives
        assert objective.binarise(white, torch.full((2,), extreme)).equal(white)


def test_free_bits_leave_dimensions_alone_that_say_less():
    mean = torch.tensor([[2.0, 0.1], [2.0, 0.3]], requires_grad=True)
    terms = objective.Terms(torch.tensor([3.0, 5.0]), objective.rate(Posterior(mean, torch.zeros(2, 2))))
    loss = objective.loss(terms, 2.0, free_bits=0.5)  # rates 2 and 0.025, on average
    assert loss.item() == pytest.approx(4 + 2 * (2 + 0.5))
    (gradient,) = torch.autograd.grad(loss, mean)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, 0.0], [2.0, 0.0]]))
    assert objective.loss(terms, 2.0).item() == pytest.approx(4 + 2 * 2.025)
