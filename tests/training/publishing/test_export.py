"""The exported graphs compute what torch computes at every batch size, and describe themselves rightly."""

import numpy as np
import onnx
import pytest
import torch

from training.config import TrainConfig
from training.fit import checkpoint
from training.model.networks import build
from training.publishing import onnx_graphs
from vaeserve.bundle.engine import Engine


def test_graphs_have_the_contract_s_names_and_one_file_each(exported):
    folder = exported.draft.folder
    assert {path.name for path in folder.iterdir()} == {
        "decoder.onnx",
        "encoder.onnx",
        "golden.npz",
        "prior.npz",
    }
    for name, inputs, outputs in (
        ("encoder.onnx", ["image"], ["mean", "logvar"]),
        ("decoder.onnx", ["z"], ["image", "pixels"]),
    ):
        model = onnx.load(folder / name, load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
        assert [node.name for node in model.graph.input] == inputs
        assert [node.name for node in model.graph.output] == outputs
        assert model.opset_import[0].version == onnx_graphs.OPSET
        assert not any("Random" in node.op_type for node in model.graph.node)


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_engine_and_torch_agree(exported, run, digits, n):
    network, _ = checkpoint.load(run.checkpoint)
    images = digits.pixels[:n]
    with torch.no_grad():
        expected = network.encoder(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        pixels = torch.sigmoid(network.decoder(expected.mean)).permute(0, 2, 3, 1).numpy()
    posterior = exported.engine.encode(images)
    np.testing.assert_allclose(posterior.mean, expected.mean.numpy(), atol=1e-4)
    np.testing.assert_allclose(posterior.logvar, expected.logvar.numpy(), atol=1e-4)
    np.testing.assert_allclose(exported.engine.pixels(posterior.mean), pixels, atol=1e-4)
    assert np.abs(exported.engine.decode(posterior.mean) - np.rint(pixels * 255)).max() <= 1


@pytest.mark.parametrize("options", [{"optimise": False}, {"threads": 2}])
def test_golden_vectors_hold_without_optimisation_and_with_other_threads(exported, options):
    Engine(exported.draft.bundle(), **options)


def test_the_manifest_says_what_was_measured(exported, run, digits):
    manifest = exported.draft.manifest
    images = digits.pixels[digits.split.validation]
    mean, logvar = exported.engine.encode(images)
    assert manifest.image.levels == 17
    assert manifest.labels == tuple("0123456789")
    kl = 0.5 * (mean.astype(float) ** 2 + np.exp(logvar.astype(float)) - 1 - logvar).mean(axis=0)
    np.testing.assert_allclose(manifest.latent.kl, kl, atol=1e-4)
    error = np.sqrt(np.square(exported.engine.pixels(mean) - images / 255).mean())
    assert error < manifest.likelihood.scale < 1.5 * error  # σ is that of samples, a little above the mean's
    assert manifest.tolerance.latent >= 1e-3
    assert manifest.training.data.digest == digits.digest


def test_another_network_than_was_exported_is_noticed(exported, run, digits):
    config = TrainConfig.from_dict(checkpoint.read_state(run.checkpoint)["config"])
    other = build(config).eval()
    with pytest.raises(onnx_graphs.ExportError, match="onnxruntime and torch disagree: mean by"):
        onnx_graphs.Graphs(other.encoder, other.decoder).parity(exported.engine, digits.pixels[:8])


def test_each_label_has_a_mixture_that_explains_its_own_latents_best(exported, digits):
    by_label = exported.engine.prior.by_label
    assert sorted(by_label) == list(range(10))
    rows = digits.split.test
    mean = exported.engine.encode(digits.pixels[rows]).mean.astype(float)
    densities = np.stack([by_label[label].log_density(mean) for label in range(10)])
    # Nothing but the densities tells the labels apart, in a model that has hardly learned anything.
    assert (densities.argmax(axis=0) == digits.labels[rows]).mean() > 0.3
