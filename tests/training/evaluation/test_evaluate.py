"""The figures are means over images, of the right things, through the exported graphs."""

import dataclasses
import math
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from scipy import stats

from tests.bundles import _graph, make_draft
from training.config import TrainConfig
from training.data import images as data
from training.data.binarised import model_inputs
from training.data.images import from_arrays
from training.evaluation import evaluate as module
from training.evaluation import representation
from training.evaluation.evaluate import evaluate
from training.fit import checkpoint, trainer
from training.publishing.export import export
from vaeserve.bundle.batched import encode
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import Draft, Golden
from vaeserve.bundle.likelihood import Bernoulli, Gaussian
from vaeserve.bundle.manifest import ImageSpec, LatentSpec, Manifest
from vaeserve.bundle.noise import noise

FEW = {"iwae_k": 3, "iwae_n": 20}


@pytest.fixture(scope="module")
def evaluation(exported, digits):
    return evaluate(exported.engine, digits, **FEW)


def test_elbo_is_the_sum_over_pixels_and_latents_averaged_over_images(exported, digits, evaluation):
    engine, images = exported.engine, digits.pixels[digits.split.test]
    mean, logvar = engine.encode(images)
    z = mean + np.exp(logvar / 2) * noise(0, range(len(images)), mean.shape[1:])
    pixels, sigma = engine.pixels(z).astype(float), engine.manifest.likelihood.scale
    level = np.rint(images / 255 * 16)
    upper = np.where(level == 16, np.inf, (level + 0.5) / 16)
    lower = np.where(level == 0, -np.inf, (level - 0.5) / 16)
    mass = stats.norm.cdf(upper, pixels, sigma) - stats.norm.cdf(lower, pixels, sigma)
    distortion = -np.log(mass).sum(axis=(1, 2, 3))
    each = 0.5 * (mean.astype(float) ** 2 + np.exp(logvar.astype(float)) - 1 - logvar)
    rate = each.sum(axis=1)
    found = evaluation.metrics
    assert found["distortion"].value == pytest.approx(distortion.mean(), rel=1e-4)
    assert found["rate"].value == pytest.approx(rate.mean(), rel=1e-5)
    assert found["rate"].value > 0  # some log it with the wrong sign
    np.testing.assert_allclose(evaluation.kl, each.mean(axis=0), rtol=1e-5)
    assert found["elbo"].value == pytest.approx(-(distortion + rate).mean(), rel=1e-4)
    assert found["elbo"].se == pytest.approx(
        (distortion + rate).std(ddof=1) / math.sqrt(len(images)), rel=1e-3
    )
    assert found["bits_per_dim"].value == pytest.approx(
        (distortion + rate).mean() / 64 / math.log(2), rel=1e-4
    )
    assert found["elbo"].n == len(images)


def test_mse_is_that_of_the_posterior_mean_s_reconstruction(exported, digits, evaluation):
    images = digits.pixels[digits.split.test]
    errors = np.square(exported.engine.pixels(exported.engine.encode(images).mean) - images / 255)
    found = evaluation.metrics
    assert found["mse"].value == pytest.approx(errors.mean(), rel=1e-6)
    assert found["psnr"].value == pytest.approx((-10 * np.log10(errors.mean(axis=(1, 2, 3)))).mean())
    assert 0 < found["ssim"].value < 1


def test_the_chunk_size_changes_nothing(exported, digits, evaluation, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 13)
    monkeypatch.setattr(representation, "CHUNK", 17)
    again = evaluate(exported.engine, digits, **FEW).metrics
    for name, metric in evaluation.metrics.items():
        assert again[name].value == pytest.approx(metric.value, rel=1e-5), name


def test_a_trained_model_embeds_better_than_chance_and_is_compared_with_baselines(evaluation, digits):
    metrics = evaluation.metrics
    for suffix in ("", "_pca", "_pixels", "_random"):
        assert metrics[f"linear_probe{suffix}"].n == metrics[f"knn5{suffix}"].n == len(digits.split.test)
    assert metrics["linear_probe"].value > 0.5
    assert metrics["linear_probe_pixels"].value > 0.9
    assert metrics["knn5_pca"].value > 0.9  # 8 components: 0.965 on another split
    assert metrics["knn5"].value > metrics["knn5_random"].value
    assert 0.02 < metrics["mse_pca"].value < 0.03  # 8 components: 0.0249 on another split
    assert metrics["fitted"].n == len(digits.split.train)


def test_large_sets_are_fitted_and_judged_on_a_part_of_them(exported, digits, monkeypatch):
    monkeypatch.setattr(representation, "MOST_VALUES", 64 * 100)  # a hundred images
    metrics = representation.compare_with_baselines(exported.engine, digits, 0, lambda text: None)
    assert metrics["fitted"].n == 100
    assert {metrics[name].n for name in ("knn5", "mse_pca", "linear_probe_random")} == {25}


def test_the_untrained_encoder_is_the_run_s_network_before_its_first_step(exported, digits):
    engine = exported.engine
    untrained = representation._untrained(engine.manifest)
    features = untrained(data.Subset(digits.pixels, np.arange(20)))
    assert features.shape == (20, 8)
    assert np.abs(features - engine.encode(digits.pixels[:20]).mean).max() > 0.1
    bare = engine.manifest.model_copy(update={"training": None})
    assert representation._untrained(bare) is None


def test_without_labels_there_are_no_probes(exported, digits):
    bare = from_arrays("bare", digits.pixels, levels=17)
    metrics = evaluate(exported.engine, bare, **FEW).metrics
    assert "elbo" in metrics
    assert "mse_pca" in metrics
    assert "linear_probe" not in metrics


def test_a_bernoulli_model_of_grey_data_is_evaluated_on_one_binarised_test_set(digits):
    found = model_inputs("bernoulli", digits, digits.split.test, seed=0)
    images, grey = found[:], digits.pixels[digits.split.test]
    assert set(np.unique(images)) == {0, 255}
    assert (images[grey == 0] == 0).all()
    assert (images[grey == 255] == 255).all()
    assert np.abs(images.mean() - grey.mean()) < 2  # x ~ Bernoulli(pixel)
    np.testing.assert_array_equal(images[40:50], found[40:50])  # however it is sliced
    assert (images != model_inputs("bernoulli", digits, digits.split.test, seed=1)[:]).any()
    np.testing.assert_array_equal(model_inputs("gaussian", digits, digits.split.test, seed=0)[:], grey)


def test_the_fitted_prior_explains_the_posterior_better_than_the_normal(exported, digits, evaluation):
    assert exported.engine.prior.mixture is not None
    prior_gap = evaluation.metrics["prior_gap"]
    assert prior_gap.value > 0
    assert prior_gap.n == len(digits.split.test)
    assert evaluation.metrics["iwae_prior"].value > evaluation.metrics["iwae"].value


SIDE, LATENT, SIGMA = 6, 3, 0.1


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """x = W z + b + σ·noise, with orthogonal columns of W: then the true posterior is a diagonal Gaussian.

    `engine(wider)`: the encoder gives the true posterior with `wider` added to its logvar. The pixels lie in
    the middle of [0, 1] and σ is 25 grey levels, so that a bin's mass is its density times its width.
    """
    rng = np.random.default_rng(0)
    d = SIDE * SIDE
    w = np.linalg.qr(rng.normal(size=(d, LATENT)))[0] * np.array([0.5, 0.3, 0.05])
    b = np.full(d, 0.5)
    precision = 1 + (w**2).sum(axis=0) / SIGMA**2  # of each latent, given x
    z = rng.normal(size=(300, LATENT))
    x = z @ w.T + b + SIGMA * rng.normal(size=(300, d))
    images = np.rint(np.clip(x, 0.01, 0.99) * 255).astype(np.uint8)
    exact = stats.multivariate_normal(b, w @ w.T + SIGMA**2 * np.eye(d)).logpdf(images / 255)
    images = images.reshape(-1, SIDE, SIDE, 1)
    exact -= d * math.log(255)

    def engine(wider=0.0):
        folder = tmp_path_factory.mktemp("linear")
        constants = {
            "scale": np.float32(1 / 255), "flat": np.array([-1, d], np.int64), "b": b.astype(np.float32),
            "gain": (w / SIGMA**2 / precision).astype(np.float32), "none": np.zeros((d, LATENT), np.float32),
            "spread": (wider - np.log(precision)).astype(np.float32),
        }  # fmt: skip
        encoder = _graph(
            [
                helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
                helper.make_node("Mul", ["float", "scale"], ["unit"]),
                helper.make_node("Reshape", ["unit", "flat"], ["x"]),
                helper.make_node("Sub", ["x", "b"], ["centred"]),
                helper.make_node("MatMul", ["centred", "gain"], ["mean"]),
                helper.make_node("MatMul", ["centred", "none"], ["zeros"]),
                helper.make_node("Add", ["zeros", "spread"], ["logvar"]),
            ],
            constants,
            inputs=[("image", TensorProto.UINT8, (SIDE, SIDE, 1))],
            outputs=[("mean", TensorProto.FLOAT, (LATENT,)), ("logvar", TensorProto.FLOAT, (LATENT,))],
        )
        decoder = _graph(
            [
                helper.make_node("MatMul", ["z", "w"], ["moved"]),
                helper.make_node("Add", ["moved", "b"], ["y"]),
                helper.make_node("Reshape", ["y", "out"], ["pixels"]),
                helper.make_node("Clip", ["pixels", "low", "high"], ["clipped"]),
                helper.make_node("Mul", ["clipped", "full"], ["levels"]),
                helper.make_node("Cast", ["levels"], ["image"], to=TensorProto.UINT8),
            ],
            {
                "w": w.T.astype(np.float32), "b": b.astype(np.float32), "full": np.float32(255),
                "out": np.array([-1, SIDE, SIDE, 1], np.int64), "low": np.float32(0), "high": np.float32(1),
            },
            inputs=[("z", TensorProto.FLOAT, (LATENT,))],
            outputs=[
                ("image", TensorProto.UINT8, (SIDE, SIDE, 1)), ("pixels", TensorProto.FLOAT, (SIDE, SIDE, 1))
            ],
        )  # fmt: skip
        (folder / "encoder.onnx").write_bytes(encoder)
        (folder / "decoder.onnx").write_bytes(decoder)
        mean, logvar = ort.InferenceSession(encoder).run(None, {"image": images[:2]})
        image, pixels = ort.InferenceSession(decoder).run(["image", "pixels"], {"z": mean})
        Golden(images[:2], mean, logvar, image, pixels).save(folder / "golden.npz")
        manifest = Manifest(
            name="linear",
            version=1,
            created=datetime.now(UTC),
            image=ImageSpec(height=SIDE, width=SIDE, channels=1),
            latent=LatentSpec(shape=(LATENT,)),
            likelihood=Gaussian(scale=SIGMA),
        )
        return Engine(Draft(folder, manifest).bundle())

    return SimpleNamespace(engine=engine, images=images, exact=exact)


@pytest.mark.parametrize("k", [1, 2, 7, 300])  # below the chunk, dividing it or not, and above it
def test_with_the_true_posterior_the_bound_is_the_likelihood_whatever_k(linear, k, monkeypatch):
    """A weight p(x|z)p(z)/q(z|x) is then p(x) for every z: no noise is left, so every mistake shows."""
    monkeypatch.setattr(module, "CHUNK", 64)
    engine, images = linear.engine(), linear.images[:20]
    posterior = encode(engine, images)
    found = module.iwae(engine, images, posterior, k, seed=0)["iwae"]
    assert (found.k, found.n) == (k, 20)
    assert found.value == pytest.approx(linear.exact[:20].mean(), abs=0.02)
    assert found.se == pytest.approx(stats.sem(linear.exact[:20]), rel=0.01)


def test_with_another_posterior_elbo_and_bound_are_what_the_closed_forms_say(linear):
    wider = 0.8
    engine, images = linear.engine(wider), linear.images
    posterior = encode(engine, images)
    # ELBO = log p(x) - KL(q ‖ p(z|x)), and both Gaussians have the same mean.
    gap = LATENT * 0.5 * (math.exp(wider) - 1 - wider)
    elbos = [module.elbo(engine, images, posterior, seed)["elbo"].value for seed in range(10)]
    assert np.mean(elbos) == pytest.approx(linear.exact.mean() - gap, abs=0.1)  # spread 0.027
    bounds = [
        module.iwae(engine, images[:100], posterior.take(slice(100)), k, seed=0)["iwae"].value
        for k in (1, 10, 200)
    ]
    assert bounds[0] < bounds[1] < bounds[2]
    assert bounds[2] == pytest.approx(linear.exact[:100].mean(), abs=0.05)


def test_the_bound_of_a_bernoulli_decoder_is_the_integral(tmp_path):
    """One latent: p(x) = ∫ p(x|z) N(z; 0, 1) dz by the trapezoid rule."""
    draft = make_draft(tmp_path, "b", 3, 3, 1, (1,))
    manifest = draft.manifest.model_copy(update={"likelihood": Bernoulli()})
    engine = Engine(Draft(tmp_path, manifest).bundle())
    images = np.random.default_rng(1).integers(0, 2, (10, 3, 3, 1), dtype=np.uint8) * np.uint8(255)
    grid = np.linspace(-8, 8, 2001, dtype=np.float32)
    p = engine.pixels(grid[:, None]).astype(float)  # [2001, 3, 3, 1]
    exact = [
        np.log(np.trapezoid(stats.norm.pdf(grid) * np.prod(np.where(x, p, 1 - p), axis=(1, 2, 3)), grid))
        for x in images > 0
    ]
    posterior = encode(engine, images)
    found = module.iwae(engine, images, posterior, 3000, seed=0)["iwae"]
    assert found.value == pytest.approx(np.mean(exact), abs=0.02)


def test_the_bound_is_reproducible_and_needs_a_sample(linear):
    engine, images = linear.engine(0.5), linear.images[:3]
    posterior = encode(engine, images)
    assert module.iwae(engine, images, posterior, 5, 0) == module.iwae(engine, images, posterior, 5, 0)
    with pytest.raises(ValueError, match="k must be from 1"):
        module.iwae(engine, images, posterior, 0, 0)


@pytest.mark.heavy
def test_nothing_is_selected_on_the_test_images(digits, tmp_path):
    """Other test images, the same everything else: weights, best step, σ, KL, mixture are the same to the
    bit, and only the figures of the test change."""
    changed = digits.pixels.copy()
    changed[digits.split.test] = 255 - changed[digits.split.test]
    other = dataclasses.replace(digits, pixels=changed)  # with the split and the digest that it had
    ends = []
    for name, images in (("one", digits), ("other", other)):
        config = TrainConfig(epochs=3, width=4, latent=3, device="cpu", compile=False)
        result = trainer.fit(config, images, tmp_path / name)
        (tmp_path / f"{name}-draft").mkdir()
        draft = export(result.checkpoint, images, tmp_path / f"{name}-draft")
        metrics = evaluate(Engine(draft.bundle()), images, **FEW).metrics
        ends.append(
            (result.checkpoint.name, checkpoint.read_tensors(result.checkpoint)["ema"], draft, metrics)
        )
    (step, weights, draft, metrics), (other_step, other_weights, other_draft, other_metrics) = ends
    assert step == other_step
    assert all((weights[key] == other_weights[key]).all() for key in weights)
    for file in ("encoder.onnx", "decoder.onnx", "golden.npz", "prior.npz"):
        if file.endswith(".npz"):
            with np.load(draft.folder / file) as a, np.load(other_draft.folder / file) as b:
                assert all((a[key] == b[key]).all() for key in a.files)
        else:
            assert (draft.folder / file).read_bytes() == (other_draft.folder / file).read_bytes()
    assert draft.manifest.likelihood == other_draft.manifest.likelihood
    assert draft.manifest.latent == other_draft.manifest.latent
    assert metrics["elbo"].value != other_metrics["elbo"].value
