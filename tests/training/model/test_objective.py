"""The objective against scipy, and against what it must be on tensors small enough to do by hand."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from training.config import ConfigError, TrainConfig
from training.model import objective
from training.model.networks import Output, Posterior, reparameterise
from vaeserve.bundle.likelihood import Logistic


def output(logits, posterior, **more):
    """With the posterior's mean as its one sample."""
    return Output(logits, posterior, posterior.mean, **more)


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
    distortions, squares = objective.distortions("bernoulli", output(logits, posterior), pixels)
    terms = objective.terms(distortions, output(logits, posterior))
    assert terms.distortion.tolist() == pytest.approx([12 * math.log(2)] * 2)
    assert terms.rate.shape == (2, 5)
    assert squares.item() == pytest.approx(24 * 0.25)
    assert objective.loss(terms, 1).item() == pytest.approx(12 * math.log(2) + 2.5)
    assert objective.loss(terms, 0.1).item() == pytest.approx(12 * math.log(2) + 0.25)


def test_gaussian_terms_take_the_batch_optimum_or_the_variance_they_are_given():
    logits, pixels = torch.zeros(2, 1, 3, 4), torch.ones(2, 1, 3, 4)  # every error is ½
    posterior = Posterior(torch.zeros(2, 5), torch.zeros(2, 5))
    optimum, _ = objective.distortions("gaussian", output(logits, posterior), pixels)
    assert optimum[:, 0].tolist() == pytest.approx([6 * (1 + math.log(2 * math.pi * 0.25))] * 2)
    given, _ = objective.distortions("gaussian", output(logits, posterior), pixels, torch.tensor(1.0))
    assert given[:, 0].tolist() == pytest.approx([6 * (0.25 + math.log(2 * math.pi))] * 2)


def test_the_gaussian_gradient_is_that_of_half_d_log_mse():
    """What σ at its optimum amounts to (σ-VAE, equation 6), although no gradient goes through σ."""
    logits = torch.randn(4, 1, 3, 3, requires_grad=True)
    pixels = torch.rand(4, 1, 3, 3)
    posterior = Posterior(torch.zeros(4, 1), torch.zeros(4, 1))
    distortions, _ = objective.distortions("gaussian", output(logits, posterior), pixels)
    ours = torch.autograd.grad(
        objective.loss(objective.terms(distortions, output(logits, posterior)), 1), logits
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


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_logistic_s_bins_are_scipy_s_and_sum_to_one(levels):
    """Differences of the distribution function at the bins' edges; the end bins reach to infinity."""
    scale, mean = 0.07, 0.31
    grey = np.arange(levels) / (levels - 1)
    edges = np.concatenate([[-np.inf], (np.arange(levels - 1) + 0.5) / (levels - 1), [np.inf]])
    expected = np.diff(scipy.stats.logistic.cdf(edges, mean, scale))
    pixels = torch.tensor(grey, dtype=torch.float32).reshape(-1, 1, 1, 1)
    nats = objective.logistic(torch.full_like(pixels, mean), pixels, torch.tensor(scale), levels)
    assert torch.exp(-nats.double()).sum().item() == pytest.approx(1, abs=1e-5)
    near = expected > 1e-6
    assert nats[near].tolist() == pytest.approx(-np.log(expected[near]), rel=1e-4)


def test_the_logistic_is_what_the_service_computes_and_finite_however_far_off():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
    images[0], images[1] = 0, 255
    mean = rng.random((5, 6, 6, 3), dtype=np.float32)
    for scale in (0.001, 0.02, 0.5):
        said = Logistic(scale=scale)
        expected = -said.log_prob(images, mean)
        found = objective.logistic(
            torch.from_numpy(mean), torch.from_numpy(images / np.float32(255)), torch.tensor(scale), 256
        )
        assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_the_logistic_s_scale_is_learned_to_what_the_noise_has():
    noise = scipy.stats.logistic(scale=0.05).rvs((1, 1, 100, 100), random_state=0)
    pixels = (torch.from_numpy(0.5 + noise).float() * 255).round() / 255
    log_scale = torch.tensor(-2.0, requires_grad=True)
    optimiser = torch.optim.Adam([log_scale], lr=0.05)
    for _ in range(100):
        optimiser.zero_grad()
        objective.logistic(torch.full_like(pixels, 0.5), pixels, log_scale.exp(), 256).mean().backward()
        optimiser.step()
    assert log_scale.exp().item() == pytest.approx(0.05, rel=0.03)


def weighed(k, seed=0, dimensions=2, n=4096, grad=False):
    """x = z + noise, both N(0, I), x = 1; q has a mean and a deviation that are wrong: log p(x) is known."""
    mean = torch.full((n, dimensions), 0.2, requires_grad=grad)
    logvar = torch.full((n, dimensions), -0.2, requires_grad=grad)
    posterior = Posterior(mean, logvar)
    z = reparameterise(
        posterior, torch.randn(n, k, dimensions, generator=torch.Generator().manual_seed(seed))
    )
    distortions = 0.5 * ((1 - z).square() + math.log(2 * math.pi)).sum(1).reshape(n, k)
    return posterior, distortions, Output(z, posterior, z)


def test_the_bound_of_one_sample_is_the_elbo_and_more_rise_to_log_p_of_x():
    _, distortions, seen = weighed(1)
    elbo = -objective.loss(objective.terms(distortions, seen), 1).item()
    assert objective.bound(distortions, seen).mean().item() == pytest.approx(elbo, abs=0.03)
    exact = -(0.5 * 1 / 2 + 0.5 * math.log(2 * math.pi * 2)) * 2  # log N(x; 0, 2·I)
    bounds = [objective.bound(*weighed(k)[1:]).mean().item() for k in (1, 2, 5, 20, 100)]
    assert bounds == sorted(bounds)
    assert bounds[0] < exact - 0.1
    assert bounds[-1] == pytest.approx(exact, abs=0.01)


def test_the_gradient_of_the_bound_is_unbiased_and_less_noisy_than_autograd_s():
    """DReG against what comes back through log q as it stands: the same mean, and a smaller deviation."""
    posterior, distortions, seen = weighed(20, grad=True, n=20_000)
    ours = torch.autograd.grad(objective.bound(distortions, seen).sum(), posterior)
    posterior, distortions, seen = weighed(20, grad=True, n=20_000)
    z, (n, k) = seen.z.reshape(*distortions.shape, -1), distortions.shape
    log_q = torch.distributions.Normal(posterior.mean[:, None], (posterior.logvar / 2).exp()[:, None])
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    weights = (log_p - log_q.log_prob(z)).sum(2) - distortions
    theirs = torch.autograd.grad((weights.logsumexp(1) - math.log(k)).sum(), posterior)
    for mine, usual in zip(ours, theirs, strict=True):
        error = (mine.var(0) + usual.var(0)).div(n).sqrt()
        assert ((mine.mean(0) - usual.mean(0)).abs() < 4 * error).all()
        assert (mine.std(0) < 0.5 * usual.std(0)).all()


def test_what_the_bound_and_the_flow_have_no_meaning_for_is_refused():
    for settings in ({"iwae": 0}, {"prior": "gmm"}, {"likelihood": "poisson"}):
        with pytest.raises(ConfigError, match="cannot be"):
            TrainConfig(**settings)
    with pytest.raises(ConfigError, match="--free-bits"):
        TrainConfig(prior="flow", free_bits=0.1)
    with pytest.raises(ConfigError, match="--beta"):
        TrainConfig(iwae=5, beta=2.0)
