"""A bundle in eight-bit integers: its graphs, its distance from float32, and the comparison on its card."""

import re

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from training.cli import app
from training.model.networks import Decoder, Encoder, Shape
from training.publishing import quantize
from training.publishing.onnx_graphs import Graphs
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import read_bundle
from vaeserve.bundle.repository import open_engine

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def models(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    result = CliRunner().invoke(app, ["export", str(run.checkpoint), "--models", str(folder), "--int8"])
    assert result.exit_code == 0, result.output
    return folder


def test_int8_is_a_separate_model_close_to_float32(models, digits):
    exact, int8 = open_engine(models / "digits/1"), open_engine(models / "digits-int8/1")
    images = digits.pixels[digits.split.test]
    ours, theirs = int8.encode(images), exact.encode(images)
    off = np.abs(ours.mean - theirs.mean)
    assert 1e-5 < off.mean() < 0.1  # different arithmetic, the same model
    metrics, before = int8.manifest.metrics, exact.manifest.metrics
    assert metrics["mse"].value == pytest.approx(before["mse"].value, rel=0.1)
    assert metrics["linear_probe"].value == pytest.approx(before["linear_probe"].value, abs=0.03)
    assert metrics["iwae"].k == before["iwae"].k


def test_weights_are_int8_except_in_the_last_layer(models):
    for side in ("encoder", "decoder"):
        graph = onnx.load(models / f"digits-int8/1/{side}.onnx").graph
        made = {output: node for node in graph.node for output in node.output}
        layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        kinds = [made[node.input[1]].op_type if node.input[1] in made else "" for node in layers]
        assert kinds[:-1] == ["DequantizeLinear"] * (len(layers) - 1)
        assert kinds[-1] == ""
        weights = [w for w in graph.initializer if w.data_type == onnx.TensorProto.INT8 and len(w.dims) > 1]
        assert len(weights) == len(layers) - 1
        assert max(np.abs(onnx.numpy_helper.to_array(w)).max() for w in weights) <= 64  # seven bits


def test_golden_vectors_hold_without_integer_kernels(models):
    bundle = read_bundle(models / "digits-int8/1")
    for optimise, threads in ((False, 1), (True, 3)):
        Engine(bundle, threads=threads, optimise=optimise)
    assert bundle.manifest.tolerance.latent < 1


def test_the_card_compares_accuracy_size_and_speed(models):
    text = (models / "digits-int8/1/README.md").read_text()
    mse = [read_bundle(models / name).manifest.metrics["mse"].value for name in ("digits-int8/1", "digits/1")]
    row = next(line for line in text.splitlines() if line.startswith("| reconstruction MSE on [0, 1] |"))
    assert [float(found) for found in re.findall(r"(\d\.\d{5}) ±", row)] == [round(each, 5) for each in mse]
    for what in ("encode, batch 1:", "decode, batch 32:", "times the size"):
        assert what in text


def test_data_that_the_bundle_was_not_trained_on_are_refused(models, tmp_path):
    np.save(tmp_path / "other.npy", np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8))
    arguments = ["quantize", str(models / "digits/1"), "--data", str(tmp_path / "other.npy")]
    result = CliRunner().invoke(app, [*arguments, "--models", str(tmp_path / "models")])
    assert result.exit_code == 1
    assert "was trained on other images" in result.output
    assert not (tmp_path / "models").exists()


def test_the_linear_path_stays_in_float32(tmp_path):
    shape = Shape(16, 16, 1, latent=4, base=8, linear=True)
    rng = np.random.default_rng(0)
    Graphs(Encoder(shape), Decoder(shape)).write(tmp_path, (16, 16, 1), 4)
    inputs = {
        "encoder": {"image": rng.integers(0, 256, (8, 16, 16, 1), dtype=np.uint8)},
        "decoder": {"z": rng.standard_normal((8, 4), dtype=np.float32)},
    }
    for side, arrays in inputs.items():
        quantize._quantize_graph(tmp_path / f"{side}.onnx", arrays)
        graph = onnx.load(tmp_path / f"{side}.onnx").graph
        kinds = {each.name: each.data_type for each in graph.initializer}
        linear = [name for node in graph.node for name in node.input if "linear.weights.weight" in name]
        assert linear
        assert all(kinds.get(name) == onnx.TensorProto.FLOAT for name in linear)
        assert onnx.TensorProto.INT8 in kinds.values()
