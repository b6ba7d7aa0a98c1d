"""The engine computes what the golden vectors say, or refuses with a sentence."""

import json

import numpy as np
import pytest
import scipy.stats

from tests.bundles import encoder_graph, flow_graph, make_bundle, make_draft, with_flow
from vaeserve.bundle import engine
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import BundleError, Draft, read_bundle
from vaeserve.bundle.manifest import PriorSpec
from vaeserve.bundle.noise import noise
from vaeserve.bundle.repository import Repository, find, open_engine

rng = np.random.default_rng(0)


@pytest.fixture
def draft(tmp_path):
    folder = tmp_path / "draft"
    folder.mkdir()
    return make_draft(folder)


def test_encode_decode_and_pixels_have_the_contract_s_shapes_and_types(tmp_path):
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


def test_wrong_arrays_are_named(draft):
    engine = Engine(draft.bundle())
    with pytest.raises(ValueError, match=r"images must be uint8 \[n, 8, 8, 1\], got float32 \[1, 8, 8, 1\]"):
        engine.encode(np.zeros((1, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match=r"latents must be float32 \[n, 4\], got float32 \[1, 5\]"):
        engine.decode(np.zeros((1, 5), np.float32))


def test_golden_vectors_that_do_not_hold_are_refused(draft):
    golden = draft.bundle().golden()
    golden._replace(mean=golden.mean + 0.01).save(draft.folder / "golden.npz")
    with pytest.raises(BundleError, match=r"`mean` is off the golden vectors by 0\.01, allowed 0\.001"):
        Engine(draft.bundle())


def test_golden_vectors_with_nan_are_refused(draft):
    golden = draft.bundle().golden()
    golden._replace(logvar=golden.logvar * np.float32("nan")).save(draft.folder / "golden.npz")
    with pytest.raises(BundleError, match="`logvar` is off"):
        Engine(draft.bundle())


def test_other_weights_than_were_exported_are_refused(draft):
    (draft.folder / "encoder.onnx").write_bytes(encoder_graph((8, 8, 1), (4,), seed=99))
    with pytest.raises(BundleError, match="off the golden vectors"):
        Engine(draft.bundle())


def test_a_graph_of_another_model_is_refused(draft):
    (draft.folder / "encoder.onnx").write_bytes(encoder_graph((8, 8, 1), (5,)))
    with pytest.raises(BundleError, match=r"output `mean` is tensor\(float\) .* asks for float32 \[n, 4\]"):
        Engine(draft.bundle())


def test_the_wrong_graph_is_refused_by_its_names(draft):
    (draft.folder / "encoder.onnx").write_bytes((draft.folder / "decoder.onnx").read_bytes())
    with pytest.raises(BundleError, match="its inputs are z, expected image"):
        Engine(draft.bundle())


def test_bytes_that_are_no_graph_are_refused(draft):
    (draft.folder / "decoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"decoder\.onnx: it is no ONNX graph"):
        Engine(draft.bundle())


def test_a_provider_that_is_not_there_is_refused_instead_of_falling_back(draft):
    with pytest.raises(BundleError, match=r"cuda was asked for, and .*install onnxruntime-gpu in its place"):
        Engine(draft.bundle(), provider="cuda")


def test_a_provider_that_does_not_start_is_refused_instead_of_falling_back(draft, monkeypatch):
    """As with onnxruntime-gpu on a machine without a driver: onnxruntime computes on the CPU then."""
    monkeypatch.setattr(engine, "check_provider", lambda provider: None)
    with (
        pytest.warns(UserWarning, match="not in available"),
        pytest.raises(BundleError, match="cuda was asked for and does not work here"),
    ):
        Engine(draft.bundle(), provider="cuda")


@pytest.mark.parametrize("latent", [(4,), (2, 3)])
def test_a_flow_is_run_both_ways(tmp_path, latent):
    """z = 2·eps + 1, whatever the latents' shape."""
    prior = Engine(with_flow(make_draft(tmp_path, latent=latent)).bundle()).prior
    assert prior.kinds == ("normal", "flow")
    eps = noise(3, range(5), latent)
    z = prior.sample(seed=3, rows=range(5))
    np.testing.assert_allclose(z, 2 * eps + 1, rtol=1e-6)
    np.testing.assert_allclose(prior.sample(seed=3, rows=range(5), temperature=0), 1)
    np.testing.assert_array_equal(prior.sample(seed=3, rows=range(5), kind="normal"), eps)
    expected = scipy.stats.norm(1, 2).logpdf(z).reshape(5, -1).sum(axis=1)
    np.testing.assert_allclose(prior.log_density(z), expected, rtol=1e-5)


def test_a_flow_without_its_density_samples_and_says_what_it_cannot(draft):
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
    with pytest.raises(BundleError, match=r"prior\.onnx: input `eps` is .* the manifest asks"):
        Engine(flow.bundle())


def test_a_flow_that_does_another_thing_than_its_golden_vectors_is_refused(draft):
    flow = with_flow(draft)
    golden = flow.bundle().golden()
    for name in ("eps", "z", "log_density"):
        golden._replace(**{name: getattr(golden, name) + np.float32(0.5)}).save(draft.folder / "golden.npz")
        with pytest.raises(BundleError, match="off the golden vectors"):
            Engine(flow.bundle())
    golden._replace(eps=None).save(draft.folder / "golden.npz")
    with pytest.raises(BundleError, match="eps is missing"):
        Engine(flow.bundle())


def test_repository_opens_the_newest_version_of_each_model(tmp_path):
    make_bundle(tmp_path, "a")
    make_bundle(tmp_path, "a", seed=1)
    make_bundle(tmp_path, "b", channels=3)
    (tmp_path / "README.md").write_text("not a model")
    (tmp_path / "empty").mkdir()
    repository = Repository(tmp_path)
    repository.load()
    assert {name: list(loaded) for name, loaded in repository.engines.items()} == {"a": [2], "b": [1]}
    assert repository.refused == {}


def test_repository_falls_back_to_the_version_that_is_good_and_says_why(tmp_path):
    make_bundle(tmp_path)
    bad = make_bundle(tmp_path, seed=1)
    (bad / "encoder.onnx").write_bytes(b"tampered")
    repository = Repository(tmp_path)
    repository.load()
    assert list(repository.engines["tiny"]) == [1]
    assert "encoder.onnx" in repository.refused[str(bad)]


def test_one_bundle_is_a_repository_too_wherever_it_lies(tmp_path):
    path = make_bundle(tmp_path)
    assert list(find(path)) == ["tiny"]
    renamed = path.rename(tmp_path / "downloaded")
    repository = Repository(renamed)
    repository.load()
    assert list(repository.engines) == ["tiny"]


def test_a_bundle_in_the_wrong_place_is_refused(tmp_path):
    path = make_bundle(tmp_path)
    moved = path.rename(path.parent / "3")
    with pytest.raises(BundleError, match="says it is tiny@1; put it at tiny/1"):
        open_engine(moved)


def test_a_repository_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(BundleError, match="is no folder; give a model repository"):
        Repository(tmp_path / "nowhere").load()


def test_a_manifest_that_lies_about_its_version_is_refused(tmp_path):
    path = make_bundle(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text()) | {"version": 9}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="says it is tiny@9"):
        open_engine(path)
