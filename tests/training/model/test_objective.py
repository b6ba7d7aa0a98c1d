"""The objective against scipy, and by hand on small tensors."""

import math

import pytest
import scipy.integrate
import scipy.stats
import torch

from training.config import ConfigError, TrainConfig
from training.model import objective
from training.model.likelihoods import LIKELIHOODS
from training.model.networks import Output, Posterior, reparameterise

BERNOULLI, GAUSSIAN = LIKELIHOODS["bernoulli"], LIKELIHOODS["gaussian"]


def output(logits, posterior, **more):
    """An output whose one sample is the posterior mean."""
    return Output(logits, posterior, posterior.mean, **more)


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


def test_the_optimal_variance_is_a_minimum_of_the_distortion():
    mean, pixels = torch.rand(8, 1, 6, 6), torch.rand(8, 1, 6, 6)
    best = objective.optimal_variance((pixels - mean).square().sum(), pixels.numel())
    at = {
        factor: -GAUSSIAN.log_prob(mean.logit(), pixels, (best * factor).sqrt(), None).mean().item()
        for factor in (0.95, 1, 1.05)
    }
    assert at[1] < min(at[0.95], at[1.05])
    # Closed form at the optimum: D/2·(1 + log 2πσ²).
    assert at[1] == pytest.approx(18 * (1 + math.log(2 * math.pi * best.item())), rel=1e-5)


def test_loss_sums_over_pixels_and_latents_and_averages_over_images():
    """Two images, logits 0 (so every pixel costs log 2), mean 1 and logvar 0 (so every latent costs ½)."""
    logits, pixels = torch.zeros(2, 1, 3, 4), torch.ones(2, 1, 3, 4)
    posterior = Posterior(torch.ones(2, 5), torch.zeros(2, 5))
    distortions, squares = objective.distortions(BERNOULLI, output(logits, posterior), pixels, levels=None)
    terms = objective.terms(distortions, output(logits, posterior))
    assert terms.distortion.tolist() == pytest.approx([12 * math.log(2)] * 2)
    assert terms.rate.shape == (2, 5)
    assert squares.item() == pytest.approx(24 * 0.25)
    assert objective.loss(terms, 1).item() == pytest.approx(12 * math.log(2) + 2.5)
    assert objective.loss(terms, 0.1).item() == pytest.approx(12 * math.log(2) + 0.25)


def test_a_gaussian_takes_the_optimum_of_the_batch_or_a_given_variance():
    logits, pixels = torch.zeros(2, 1, 3, 4), torch.ones(2, 1, 3, 4)  # every error is ½
    posterior = Posterior(torch.zeros(2, 5), torch.zeros(2, 5))
    optimum, _ = objective.distortions(GAUSSIAN, output(logits, posterior), pixels, levels=None)
    assert optimum[:, 0].tolist() == pytest.approx([6 * (1 + math.log(2 * math.pi * 0.25))] * 2)
    given, _ = objective.distortions(
        GAUSSIAN, output(logits, posterior), pixels, levels=None, variance=torch.tensor(1.0)
    )
    assert given[:, 0].tolist() == pytest.approx([6 * (0.25 + math.log(2 * math.pi))] * 2)


def test_the_gaussian_gradient_is_that_of_half_d_times_log_mse():
    """The effect of the optimal σ (σ-VAE, equation 6), although no gradient goes through σ."""
    logits = torch.randn(4, 1, 3, 3, requires_grad=True)
    pixels = torch.rand(4, 1, 3, 3)
    posterior = Posterior(torch.zeros(4, 1), torch.zeros(4, 1))
    distortions, _ = objective.distortions(GAUSSIAN, output(logits, posterior), pixels, levels=None)
    ours = torch.autograd.grad(
        objective.loss(objective.terms(distortions, output(logits, posterior)), 1), logits
    )
    mse = (pixels - torch.sigmoid(logits)).square().mean()
    theirs = torch.autograd.grad(4.5 * torch.log(mse), logits)
    torch.testing.assert_close(ours, theirs)


def test_binarisation_depends_on_the_noise_and_keeps_black_and_white():
    grey = torch.full((1, 1, 100, 100), 0.3)
    first, second = torch.rand(2, *grey.shape, generator=torch.Generator().manual_seed(0))
    once, again = objective.binarise(grey, first), objective.binarise(grey, second)
    assert set(once.unique().tolist()) == {0, 1}
    assert not once.equal(again)
    assert once.equal(objective.binarise(grey, first))
    assert once.mean().item() == pytest.approx(0.3, abs=0.02)
    white = torch.tensor([0.0, 1.0])
    for extreme in (0.0, 1 - 2**-24):  # the smallest and the largest values of torch.rand
        assert objective.binarise(white, torch.full((2,), extreme)).equal(white)


def test_free_bits_give_dimensions_with_a_low_rate_no_gradient():
    mean = torch.tensor([[2.0, 0.1], [2.0, 0.3]], requires_grad=True)
    terms = objective.Terms(torch.tensor([3.0, 5.0]), objective.rate(Posterior(mean, torch.zeros(2, 2))))
    loss = objective.loss(terms, 2.0, free_bits=0.5)  # rates 2 and 0.025, on average
    assert loss.item() == pytest.approx(4 + 2 * (2 + 0.5))
    (gradient,) = torch.autograd.grad(loss, mean)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, 0.0], [2.0, 0.0]]))
    assert objective.loss(terms, 2.0).item() == pytest.approx(4 + 2 * 2.025)


def weighted(k, seed=0, dimensions=2, n=4096, grad=False):
    """x = z + noise = 1, both N(0, I), and a q with a wrong mean and deviation: log p(x) is known."""
    mean = torch.full((n, dimensions), 0.2, requires_grad=grad)
    logvar = torch.full((n, dimensions), -0.2, requires_grad=grad)
    posterior = Posterior(mean, logvar)
    z = reparameterise(
        posterior, torch.randn(n, k, dimensions, generator=torch.Generator().manual_seed(seed))
    )
    distortions = 0.5 * ((1 - z).square() + math.log(2 * math.pi)).sum(1).reshape(n, k)
    return posterior, distortions, Output(z, posterior, z)


def test_the_bound_rises_from_the_elbo_to_log_p_of_x():
    _, distortions, out = weighted(1)
    elbo = -objective.loss(objective.terms(distortions, out), 1).item()
    assert objective.bound(distortions, out).mean().item() == pytest.approx(elbo, abs=0.03)
    exact = -(0.5 * 1 / 2 + 0.5 * math.log(2 * math.pi * 2)) * 2  # log N(x; 0, 2·I)
    bounds = [objective.bound(*weighted(k)[1:]).mean().item() for k in (1, 2, 5, 20, 100)]
    assert bounds == sorted(bounds)
    assert bounds[0] < exact - 0.1
    assert bounds[-1] == pytest.approx(exact, abs=0.01)


def test_the_gradient_of_the_bound_is_unbiased_and_has_less_noise_than_autograd():
    """DReG has the mean of the plain gradient through log q, and a smaller deviation."""
    posterior, distortions, out = weighted(20, grad=True, n=20_000)
    ours = torch.autograd.grad(objective.bound(distortions, out).sum(), posterior)
    posterior, distortions, out = weighted(20, grad=True, n=20_000)
    z, (n, k) = out.z.reshape(*distortions.shape, -1), distortions.shape
    log_q = torch.distributions.Normal(posterior.mean[:, None], (posterior.logvar / 2).exp()[:, None])
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    weights = (log_p - log_q.log_prob(z)).sum(2) - distortions
    theirs = torch.autograd.grad((weights.logsumexp(1) - math.log(k)).sum(), posterior)
    for mine, plain in zip(ours, theirs, strict=True):
        error = (mine.var(0) + plain.var(0)).div(n).sqrt()
        assert ((mine.mean(0) - plain.mean(0)).abs() < 4 * error).all()
        assert (mine.std(0) < 0.5 * plain.std(0)).all()


def test_settings_that_contradict_a_bound_or_a_flow_are_refused():
    for settings in ({"iwae": 0}, {"prior": "gmm"}, {"likelihood": "poisson"}):
        with pytest.raises(ConfigError, match="cannot be"):
            TrainConfig(**settings)
    with pytest.raises(ConfigError, match="--free-bits"):
        TrainConfig(prior="flow", free_bits=0.1)
    with pytest.raises(ConfigError, match="--beta"):
        TrainConfig(iwae=5, beta=2.0)
