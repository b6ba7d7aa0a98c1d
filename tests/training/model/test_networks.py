"""Any image shape in, the same shape out; the graphs keep the contract's names, types and ranges."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn.functional import silu

from training.config import ConfigError, TrainConfig
from training.model.graphs import DecoderGraph, EncoderGraph
from training.model.networks import (
    LOGVAR_LIMIT,
    Posterior,
    PostResidual,
    Residual,
    Shape,
    build,
    reparameterise,
)

SHAPES = [(28, 28, 1), (8, 8, 1), (37, 53, 3), (64, 48, 3), (4, 9, 1), (5, 40, 3)]


def small(height, width, channels, **more):
    config = TrainConfig(image_size=(height, width), channels=channels, latent=6, width=4)
    return build(config.replace(**more))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_comes_back(shape):
    height, width, channels = shape
    network = small(*shape)
    images = torch.rand(3, channels, height, width)
    logits, posterior, *_ = network(images, torch.randn(3, 6))
    assert logits.shape == images.shape
    assert posterior.mean.shape == posterior.logvar.shape == (3, 6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_weight_has_a_gradient_and_no_layer_mixes_images(shape):
    network = small(*shape)
    images = torch.rand(3, shape[2], *shape[:2])
    logits, posterior, *_ = network(images, torch.zeros(3, 6))
    (logits.square().sum() + posterior.logvar.sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    alone, *_ = network(images[1:2], torch.zeros(1, 6))
    torch.testing.assert_close(alone, logits[1:2], atol=1e-5, rtol=1e-4)


def test_stages_halve_and_round_up():
    assert Shape(28, 28, 1, 32, 32).sizes == ((28, 28), (14, 14), (7, 7))
    assert Shape(37, 53, 3, 32, 32).sizes == ((37, 53), (19, 27), (10, 14), (5, 7))
    assert Shape(64, 64, 3, 32, 32).stages == (32, 64, 128, 128)
    assert Shape(5, 5, 1, 8, 32).sizes == ((5, 5), (3, 3))  # at least one stage


def test_the_default_network_is_about_as_large_as_the_reference_network():
    network = build(TrainConfig(image_size=(28, 28), channels=1, latent=32))
    for part in (network.encoder, network.decoder):
        assert sum(p.numel() for p in part.parameters()) == pytest.approx(930_000, rel=0.02)


def test_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second, other = small(8, 8, 1), small(8, 8, 1), small(8, 8, 1, seed=1)
    assert before.equal(torch.random.get_rng_state())
    states = [network.state_dict() for network in (first, second, other)]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    assert not states[0]["encoder.head.weight"].equal(states[2]["encoder.head.weight"])


def test_logvar_is_bounded_whatever_comes_in():
    network = small(8, 8, 1)
    with torch.no_grad():
        network.encoder.head.weight.mul_(1e6)
        logvar = network.encoder(torch.rand(4, 1, 8, 8)).logvar
    assert logvar.abs().max() <= LOGVAR_LIMIT


def test_reparameterised_latents_have_the_posteriors_moments():
    eps = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0))
    z = reparameterise(Posterior(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, -2.0]])), eps)
    torch.testing.assert_close(z.mean(0), torch.tensor([1.0, -2.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(z.var(0).log(), torch.tensor([0.0, -2.0]), atol=0.02, rtol=0)


@pytest.mark.parametrize("shape", [(8, 8, 1), (11, 6, 3)], ids=str)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_graphs_export_and_run_on_any_batch(shape, tmp_path):
    network = small(*shape).eval()
    images = torch.randint(0, 256, (7, *shape), dtype=torch.uint8)
    encoder, decoder = EncoderGraph(network.encoder).eval(), DecoderGraph(network.decoder).eval()
    for graph, example, inputs, outputs in (
        (encoder, images[:2], ["image"], ["mean", "logvar"]),
        (decoder, torch.randn(2, 6), ["z"], ["image", "pixels"]),
    ):
        torch.onnx.export(
            graph,
            (example,),
            tmp_path / f"{inputs[0]}.onnx",
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=({0: "n"},),
            opset_version=18,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    run_encoder = onnxruntime.InferenceSession(tmp_path / "image.onnx", providers=["CPUExecutionProvider"])
    run_decoder = onnxruntime.InferenceSession(tmp_path / "z.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 2, 7):
        mean, logvar = run_encoder.run(["mean", "logvar"], {"image": images[:n].numpy()})
        with torch.no_grad():
            expected_mean, expected_logvar = encoder(images[:n])
            expected_image, expected_pixels = decoder(torch.from_numpy(mean))
        np.testing.assert_allclose(mean, expected_mean, atol=1e-5)
        np.testing.assert_allclose(logvar, expected_logvar, atol=1e-5)
        image, pixels = run_decoder.run(["image", "pixels"], {"z": mean})
        assert image.dtype == np.uint8
        assert image.shape == pixels.shape == (n, *shape)
        assert 0 <= pixels.min() <= pixels.max() <= 1
        np.testing.assert_allclose(pixels, expected_pixels, atol=1e-5)
        np.testing.assert_allclose(image.astype(int), expected_image.int(), atol=1)


def test_the_activation_of_residual_blocks_is_a_setting_and_an_old_config_s_is_pre():
    """`pre` begins as the identity, `post` does not."""
    x = torch.randn(2, 4, 5, 5)
    pre, post = Residual(4)(x) - x, PostResidual(4)(x) - silu(x)
    assert pre.flatten(2).std(dim=2).max() < 1e-5  # the last convolution's bias, the same everywhere
    assert post.std() > 0.01
    assert isinstance(small(8, 8, 1, activation="post").encoder.stages[1], PostResidual)
    old = TrainConfig(image_size=(8, 8), channels=1, latent=6, width=4, activation="post").to_dict()
    del old["activation"]
    assert isinstance(build(TrainConfig.from_dict(old)).encoder.stages[1], Residual)
    with pytest.raises(ConfigError, match="activation"):
        TrainConfig(activation="none")


@pytest.mark.parametrize("activation", ["pre", "post"])
def test_deep_networks_have_norms_and_begin_as_those_without(activation):
    assert not any(isinstance(each, torch.nn.GroupNorm) for each in small(28, 28, 1).modules())
    network = small(32, 32, 1, activation=activation)
    groups = [each.num_groups for each in network.encoder.modules() if isinstance(each, torch.nn.GroupNorm)]
    assert groups == [1, 1, 1, 1, 2, 2]
    x, block = 5 * torch.randn(2, 16, 4, 4), Residual(16, normed=True)
    torch.testing.assert_close(block(x) - x, block.last.bias[:, None, None].expand_as(x))
