"""The flow is a density: it comes back, its Jacobian is autograd's, and it has a mass of one."""

import math

import numpy as np
import pytest
import torch

from tests.training.runs import TINY, Watch, learned_and_resumed
from training.evaluation import evaluate
from training.fit import checkpoint, trainer
from training.model import objective
from training.model.flow import Flow, log_standard_normal
from training.model.networks import build
from training.publishing import export, onnx_graphs
from vaeserve.bundle.batched import encode
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import BundleError, Draft
from vaeserve.bundle.manifest import PriorSpec
from vaeserve.bundle.noise import noise

FLOW = TINY.replace(prior="flow", flow_blocks=3, flow_hidden=8)


def wild(latent, blocks=4, seed=0):
    """A flow that is far from the identity that it begins as."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = Flow(latent, blocks, 16)
        for block in flow.blocks:
            torch.nn.init.normal_(block.last.weight, std=0.6)
            torch.nn.init.normal_(block.last.bias, std=0.3)
    return flow.eval().requires_grad_(False)


@pytest.mark.parametrize("latent", [2, 3, 8, 40])
def test_both_directions_are_each_other_s_inverse(latent):
    flow = wild(latent).double()
    eps = torch.randn(50, latent, generator=torch.Generator().manual_seed(0)).double()
    z = flow.sample(eps)
    assert (z - eps).abs().mean() > 0.2
    again, _ = flow.normalise(z)
    torch.testing.assert_close(again, eps, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("latent", [2, 3, 7])
def test_the_log_determinant_is_that_of_autograd_s_jacobian(latent):
    flow = wild(latent).double()
    z = torch.randn(5, latent, generator=torch.Generator().manual_seed(1)).double()
    _, log_det = flow.normalise(z)
    assert log_det.abs().min() > 1e-3
    for row in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda x: flow.normalise(x[None])[0][0], z[row])
        assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(log_det[row].item(), abs=1e-9)


def test_its_density_integrates_to_one():
    """Over a plane, by sums over a grid that is finer than anything in it."""
    flow = wild(2, seed=2).double()
    axis = torch.linspace(-25, 25, 2001, dtype=torch.double)
    grid = torch.cartesian_prod(axis, axis)
    density = torch.cat([flow.log_density(part).exp() for part in grid.split(1 << 18)])
    assert (density.sum() * (axis[1] - axis[0]) ** 2).item() == pytest.approx(1, abs=0.01)


def test_it_begins_as_the_standard_normal_and_every_half_is_moved():
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    flow = Flow(5, 8, 16)
    torch.testing.assert_close(flow.log_density(z), log_standard_normal(z))
    torch.testing.assert_close(flow.sample(z), z)
    moved = (wild(5, blocks=2).sample(z) - z).abs()
    assert (moved > 1e-3).any(0).all()
    with pytest.raises(ValueError, match="use two or more"):
        Flow(1, 2, 4)


def test_the_rate_under_a_flow_that_is_n_0_1_is_the_closed_form_on_average():
    posterior = objective.Posterior(torch.tensor([[0.5, -1.0]]), torch.tensor([[-1.0, 0.3]]))
    eps = torch.randn(1, 400_000, 2, generator=torch.Generator().manual_seed(0))
    z = (posterior.mean[:, None] + (posterior.logvar / 2).exp()[:, None] * eps).flatten(0, 1)
    rate = objective.trained_rate(posterior, log_standard_normal(z))
    assert rate.shape == (1, 1)
    assert rate.item() == pytest.approx(objective.rate(posterior).sum().item(), abs=0.01)


def test_without_a_flow_the_other_weights_are_the_same():
    settings = {"image_size": (8, 8), "channels": 1}
    plain, flowing = (build(config.replace(**settings)) for config in (TINY, FLOW))
    weights = flowing.state_dict()
    assert all(tensor.equal(weights[name]) for name, tensor in plain.state_dict().items())
    assert any(name.startswith("prior.") for name in weights)


def test_in_bfloat16_the_flow_stays_float32():
    network = build(FLOW.replace(image_size=(8, 8), channels=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(torch.rand(2, 1, 8, 8), torch.randn(2, 4)).float()
    assert output.log_prior.dtype == torch.float32
    torch.testing.assert_close(output.log_prior, network.flow.log_density(output.z))


@pytest.mark.parametrize(
    "config",
    [FLOW, TINY.replace(likelihood="logistic", iwae=3, prior="flow", flow_blocks=2)],
    ids=["flow", "all"],
)
def test_a_run_with_a_flow_resumes_bit_identically_and_learns(config, digits, tmp_path, monkeypatch):
    whole = learned_and_resumed(config, digits, tmp_path)
    network, state = checkpoint.load(whole.checkpoint)
    assert any(weight.abs().max() > 0 for weight in (block.last.weight for block in network.flow.blocks))
    if config.iwae > 1:
        assert state["validation"]["iwae"] > state["validation"]["elbo"]
        assert whole.history[-1]["scale"] == pytest.approx(network.scale.item())


@pytest.fixture(scope="module")
def flowing(digits, tmp_path_factory):
    """A trained model with a flow whose draft has its graphs, and the network that they came from."""
    config = FLOW.replace(epochs=20, likelihood="logistic", width=8)
    result = trainer.fit(config, digits, tmp_path_factory.mktemp("run"), progress=Watch())
    draft = export.export(result.checkpoint, digits, tmp_path_factory.mktemp("draft"))
    return draft, checkpoint.load(result.checkpoint)[0]


def test_the_exported_graphs_are_the_flow_that_was_trained(flowing):
    draft, network = flowing
    engine = Engine(draft.bundle())
    assert draft.manifest.prior == PriorSpec(kind="flow", file="prior.onnx")
    assert engine.prior.kinds == ("normal", "mixture", "flow")
    assert sorted(engine.prior.by_label) == list(range(10))
    for n in (1, 2, 7, 300):
        eps = noise(5, range(n), (4,))
        z = engine.prior.sample(seed=5, rows=range(n))
        with torch.no_grad():
            np.testing.assert_allclose(z, network.flow.sample(torch.from_numpy(eps)), atol=1e-5)
            density = network.flow.log_density(torch.from_numpy(z))
        np.testing.assert_allclose(engine.prior.log_density(z), density, atol=1e-4)
    Engine(draft.bundle(), optimise=False)
    cold = engine.prior.sample(seed=5, rows=range(3), temperature=0)
    np.testing.assert_allclose(cold, engine.transform(np.zeros((3, 4), np.float32)))


def test_the_logistic_s_scale_is_published_as_trained(flowing):
    draft, network = flowing
    assert draft.manifest.likelihood.kind == "logistic"
    assert draft.manifest.likelihood.scale == pytest.approx(network.scale.item())
    assert draft.manifest.image.levels == 17


def test_another_flow_than_was_exported_is_noticed(flowing, digits):
    draft, network = flowing
    graphs = onnx_graphs.Graphs(network.encoder, network.decoder, flow=wild(4, blocks=3))
    with pytest.raises(onnx_graphs.ExportError, match=r"disagree: .*z by"):
        graphs.parity(Engine(draft.bundle()), digits.pixels[:8])


def test_golden_vectors_of_the_flow_that_do_not_hold_are_refused(flowing, tmp_path):
    draft, _ = flowing
    golden = draft.bundle().golden()
    for file in draft.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name in ("eps", "log_density"):
        golden._replace(**{name: getattr(golden, name) + 1}).save(tmp_path / "golden.npz")
        with pytest.raises(BundleError, match="off the golden vectors"):
            Engine(Draft(tmp_path, draft.manifest).bundle())
    golden._replace(z=None).save(tmp_path / "golden.npz")
    with pytest.raises(BundleError, match="z is missing"):
        Engine(Draft(tmp_path, draft.manifest).bundle())


def test_the_served_prior_explains_latents_better_and_both_bounds_are_reported(flowing, digits):
    draft, network = flowing
    engine = Engine(draft.bundle())
    images = digits.pixels[digits.split.test]
    mean, logvar = encoded = encode(engine, images)
    found = evaluate.elbo(engine, images, encoded, 0)
    assert found["elbo_prior"].value > found["elbo"].value
    z = torch.from_numpy(encoded.sample(0))
    posterior = objective.Posterior(torch.from_numpy(mean), torch.from_numpy(logvar))
    with torch.no_grad():
        rate = objective.trained_rate(posterior, network.flow.log_density(z)).mean().item()
    assert found["elbo_prior"].value == pytest.approx(-found["distortion"].value - rate, abs=1e-3)
    bounds = evaluate.iwae(engine, images[:40], encoded.take(slice(40)), 20, 0)
    assert bounds["iwae_prior"].value > bounds["iwae"].value
    assert math.isfinite(found["prior_gap"].value)
