"""The mixture is the density that its weights, means and covariances say, and a model is trained with it."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from tests.training.runs import TINY, learned_and_resumed
from training.config import ConfigError
from training.fit import checkpoint
from training.model.mixture import Mixture
from training.model.networks import build
from training.publishing import card, export
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.manifest import PriorSpec

MIXED = TINY.replace(prior="mixture", components=3)


def wild(latent, components, seed=0):
    """A mixture that is far from the unit Gaussians that it begins as."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixture = Mixture(latent, components)
        for parameter in mixture.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return mixture.double().requires_grad_(False)


@pytest.mark.parametrize(("latent", "components"), [(1, 1), (2, 3), (5, 4)])
def test_its_density_is_scipy_s(latent, components):
    mixture = wild(latent, components)
    z = torch.randn(7, latent, generator=torch.Generator().manual_seed(0)).double()
    expected = 0
    for k in range(components):
        factor = np.tril(mixture.lower[k].numpy(), -1) + np.diag(np.exp(mixture.log_diagonals[k].numpy()))
        covariance = np.linalg.inv(factor.T @ factor)
        density = multivariate_normal(mixture.means[k].numpy(), covariance).pdf(z.numpy())
        expected = expected + mixture.logits.softmax(0)[k].item() * density
    np.testing.assert_allclose(mixture.log_density(z).exp().numpy(), expected, rtol=1e-9)


def test_it_begins_as_unit_gaussians_around_different_places():
    mixture = Mixture(6, 4).requires_grad_(False)
    assert torch.pdist(mixture.means).min() > 0.5
    density = mixture.log_density(mixture.means).exp()
    alone = (2 * np.pi) ** -3 / 4  # of one component at its own mean; the others add what they have there
    assert ((density >= alone) & (density < 2 * alone)).all()


def test_without_a_mixture_the_other_weights_are_the_same():
    settings = {"image_size": (8, 8), "channels": 1}
    plain, mixed = (build(config.replace(**settings)) for config in (TINY, MIXED))
    weights = mixed.state_dict()
    assert all(tensor.equal(weights[name]) for name, tensor in plain.state_dict().items())
    assert {"prior.means", "prior.logits"} < weights.keys()


def test_in_bfloat16_the_mixture_stays_float32():
    network = build(MIXED.replace(image_size=(8, 8), channels=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(torch.rand(2, 1, 8, 8), torch.randn(2, 4)).float()
    assert output.log_prior.dtype == torch.float32
    torch.testing.assert_close(output.log_prior, network.prior.log_density(output.z))


def test_a_run_with_a_mixture_resumes_bit_identically_and_learns_it(digits, tmp_path, monkeypatch):
    whole = learned_and_resumed(MIXED, digits, tmp_path)

    network, _ = checkpoint.load(whole.checkpoint)
    assert network.prior.log_diagonals.abs().max() > 0  # each component has got a shape of its own
    (tmp_path / "draft").mkdir()
    draft = export.export(whole.checkpoint, digits, tmp_path / "draft")
    assert draft.manifest.prior == PriorSpec(kind="gmm", file="prior.npz")
    assert Engine(draft.bundle()).prior.kinds == ("normal", "mixture")
    text = card.card(draft.manifest, digits, {}, [])
    assert "prior in training | mixture of Gaussians, trained jointly |" in text
    assert "--prior mixture" in text


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="mixture has no rate per dimension"):
        MIXED.replace(free_bits=0.1)
    with pytest.raises(ConfigError, match="components"):
        MIXED.replace(components=0)
