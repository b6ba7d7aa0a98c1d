"""The engine reproduces the golden vectors, or refuses the bundle."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from tests.bundles import encoder_graph, flow_graph, make_bundle, make_draft, with_flow
from tests.checkout import ROOT
from vaeserve.bundle import engine
from vaeserve.bundle.engine import Engine, open_bundle
from vaeserve.bundle.files import BundleError, Draft, read_bundle
from vaeserve.bundle.manifest import PriorSpec
from vaeserve.bundle.noise import noise

rng = np.random.default_rng(0)


def test_encode_decode_and_pixels_have_the_documented_shapes_and_types(tmp_path):
    engine = Engine(read_bundle(make_bundle(tmp_path, height=6, width=10, channels=3, latent=(2, 3))))
    images = rng.integers(0, 256, (5, 6, 10, 3), dtype=np.uint8)
    posterior = engine.encode(images)
    assert posterior.mean.shape == posterior.logvar.shape == (5, 2, 3)
    assert posterior.mean.dtype == np.float32
    decoded, pixels = engine.decode(posterior.mean), engine.pixels(posterior.mean)
    assert decoded.dtype == np.uint8
    assert decoded.shape == pixels.shape == images.shape
    np.testing.assert_array_equal(decoded, np.rint(pixels * 255).astype(np.uint8))


@pytest.mark.parametrize("options", [{"optimise": False}, {"threads": 2}, {"threads": 1}])
def test_golden_vectors_hold_without_optimisation_and_with_other_thread_counts(draft, options):
    Engine(draft.bundle(), **options)


def test_batches_agree_with_single_rows(draft):
    engine = Engine(draft.bundle())
    images = rng.integers(0, 256, (7, 8, 8, 1), dtype=np.uint8)
    whole = engine.encode(images).mean
    for row in range(7):
        np.testing.assert_allclose(engine.encode(images[row : row + 1]).mean[0], whole[row], atol=1e-5)


def test_arrays_of_the_wrong_shape_or_type_are_refused(draft):
    engine = Engine(draft.bundle())
    with pytest.raises(ValueError, match=r"images must be uint8 \[n, 8, 8, 1\], got float32 \[1, 8, 8, 1\]"):
        engine.encode(np.zeros((1, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match=r"latents must be float32 \[n, 4\], got float32 \[1, 5\]"):
        engine.decode(np.zeros((1, 5), np.float32))


def test_a_bundle_that_misses_its_golden_vectors_is_refused(draft):
    golden = draft.bundle().golden()
    golden._replace(mean=golden.mean + 0.01).save(draft.folder / "golden.npz")
    with pytest.raises(BundleError, match=r"`mean` is off the golden vectors by 0\.01, allowed is 0\.001"):
        Engine(draft.bundle())


def test_golden_vectors_with_nan_are_refused(draft):
    golden = draft.bundle().golden()
    golden._replace(logvar=golden.logvar * np.float32("nan")).save(draft.folder / "golden.npz")
    with pytest.raises(BundleError, match="`logvar` is off"):
        Engine(draft.bundle())


def test_other_weights_than_the_exported_ones_are_refused(draft):
    (draft.folder / "encoder.onnx").write_bytes(encoder_graph((8, 8, 1), (4,), seed=99))
    with pytest.raises(BundleError, match="off the golden vectors"):
        Engine(draft.bundle())


def test_a_graph_of_another_model_is_refused(draft):
    (draft.folder / "encoder.onnx").write_bytes(encoder_graph((8, 8, 1), (5,)))
    with pytest.raises(BundleError, match=r"output `mean` is tensor\(float\) .* says float32 \[n, 4\]"):
        Engine(draft.bundle())


def test_a_graph_with_other_input_names_is_refused(draft):
    (draft.folder / "encoder.onnx").write_bytes((draft.folder / "decoder.onnx").read_bytes())
    with pytest.raises(BundleError, match="its inputs are z, expected image"):
        Engine(draft.bundle())


def test_bytes_that_are_not_a_graph_are_refused(draft):
    (draft.folder / "decoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"decoder\.onnx: it is not an ONNX graph"):
        Engine(draft.bundle())


def test_a_missing_provider_is_refused(draft):
    with pytest.raises(BundleError, match=r"provider cuda needs .* install onnxruntime-gpu in its place"):
        Engine(draft.bundle(), provider="cuda")


def test_a_provider_that_falls_back_to_the_cpu_is_refused(draft, monkeypatch):
    """Without a driver, onnxruntime-gpu falls back to the CPU."""
    monkeypatch.setattr(engine, "check_provider", lambda provider: None)
    with (
        pytest.warns(UserWarning, match="not in available"),
        pytest.raises(BundleError, match="provider cuda does not start here"),
    ):
        Engine(draft.bundle(), provider="cuda")


@pytest.mark.parametrize("latent", [(4,), (2, 3)])
def test_a_flow_samples_and_returns_densities(tmp_path, latent):
    """z = 2·eps + 1, for latents of any shape."""
    prior = Engine(with_flow(make_draft(tmp_path, latent=latent)).bundle()).prior
    assert prior.kinds == ("normal", "flow")
    eps = noise(3, range(5), latent)
    z = prior.sample(seed=3, rows=range(5))
    np.testing.assert_allclose(z, 2 * eps + 1, rtol=1e-6)
    np.testing.assert_allclose(prior.sample(seed=3, rows=range(5), temperature=0), 1)
    np.testing.assert_array_equal(prior.sample(seed=3, rows=range(5), kind="normal"), eps)
    expected = scipy.stats.norm(1, 2).logpdf(z).reshape(5, -1).sum(axis=1)
    np.testing.assert_allclose(prior.log_density(z), expected, rtol=1e-5)


def test_a_flow_without_its_density_can_only_sample(draft):
    prior = Engine(with_flow(draft, density=False).bundle()).prior
    np.testing.assert_allclose(prior.sample(seed=3, rows=range(2)), 2 * noise(3, range(2), (4,)) + 1)
    with pytest.raises(ValueError, match=r"without density\.onnx"):
        prior.log_density(np.zeros((1, 4), np.float32))


def test_a_flow_that_names_no_graph_or_has_other_tensors_is_refused(draft):
    flow = with_flow(draft)
    for file in (None, "golden.npz"):
        manifest = flow.manifest.model_copy(update={"prior": PriorSpec(kind="flow", file=file)})
        with pytest.raises(BundleError, match="names no graph"):
            Engine(Draft(draft.folder, manifest).bundle())
    manifest = flow.manifest.model_copy(update={"prior": PriorSpec(kind="flow", file="decoder.onnx")})
    with pytest.raises(BundleError, match=r"decoder\.onnx: its inputs are z, expected eps"):
        Engine(Draft(draft.folder, manifest).bundle())
    (draft.folder / "prior.onnx").write_bytes(flow_graph((5,)))
    with pytest.raises(BundleError, match=r"prior\.onnx: input `eps` is .* the manifest says"):
        Engine(flow.bundle())


def test_a_flow_that_misses_its_golden_vectors_is_refused(draft):
    flow = with_flow(draft)
    golden = flow.bundle().golden()
    for name in ("eps", "z", "log_density"):
        golden._replace(**{name: getattr(golden, name) + np.float32(0.5)}).save(draft.folder / "golden.npz")
        with pytest.raises(BundleError, match="off the golden vectors"):
            Engine(flow.bundle())
    golden._replace(eps=None).save(draft.folder / "golden.npz")
    with pytest.raises(BundleError, match="eps is missing"):
        Engine(flow.bundle())


def test_open_bundle_runs_a_shipped_bundle():
    path = max((ROOT / "models/digits").glob("[0-9]*"), key=lambda folder: int(folder.name))
    engine = open_bundle(str(path), threads=2)
    images = rng.integers(0, 256, (3, *engine.manifest.image.shape), dtype=np.uint8)
    mean, logvar = engine.encode(images)
    assert mean.shape == logvar.shape == (3, *engine.manifest.latent.shape)
    assert engine.decode(mean).shape == images.shape


def test_open_bundle_refuses_a_broken_bundle(tmp_path):
    path = make_bundle(tmp_path)
    (path / "decoder.onnx").write_bytes((path / "encoder.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        open_bundle(path)
    with pytest.raises(BundleError, match="a bundle is a folder with a manifest"):
        open_bundle(tmp_path / "nowhere")


def test_open_bundle_imports_no_web_framework_and_no_torch(tmp_path):
    code = f"""
import sys
from vaeserve import open_bundle
open_bundle({str(make_bundle(tmp_path))!r})
print(*sorted({{"fastapi", "starlette", "httpx", "torch", "service", "training"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_a_bundle_without_a_prior_has_nothing_to_sample_from(draft):
    manifest = draft.manifest.model_copy(update={"prior": None})
    assert Engine(Draft(draft.folder, manifest).bundle()).prior is None
