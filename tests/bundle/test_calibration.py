"""p-values: exact where the theory says so, and files that are not what they should be are refused."""

import numpy as np
import pytest

from tests.bundles import make_draft
from vaeserve.bundle.calibration import calibrate, read_calibration
from vaeserve.bundle.files import BundleError, Draft, publish, read_bundle
from vaeserve.bundle.latent_map import read_map
from vaeserve.bundle.noise import truncated
from vaeserve.bundle.prior import Mixture, Prior
from vaeserve.bundle.scores import Scores


def scores(n, seed):
    """Of exchangeable images: the four scores need not be independent."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(n)
    columns = [common + rng.standard_normal(n) for _ in range(3)]
    return Scores(columns[0] * 10 + 100, np.exp(columns[1]), columns[2], np.exp(common).astype(np.float32))


def test_p_values_of_more_of_the_same_are_uniform():
    """P(p ≤ t) = t up to the calibration's own size, for every score and for the one that joins two."""
    shares = {}
    for seed in range(40):
        for name, p in calibrate(scores(499, (seed, 0))).p_values(scores(500, (seed, 1))).items():
            assert p.min() >= 1 / 500
            assert p.max() <= 1
            shares.setdefault(name, []).append([(p <= t).mean() for t in (0.05, 0.5)])
    for name, found in shares.items():
        np.testing.assert_allclose(np.mean(found, axis=0), [0.05, 0.5], atol=0.02, err_msg=name)


def test_unusual_has_a_direction():
    calibration = calibrate(scores(99, 0))
    usual = scores(99, 0)
    worse = usual._replace(
        distortion=usual.distortion + 1e4, rate=usual.rate + 1e4, log_prior=usual.log_prior - 1e4
    )
    found = calibration.p_values(worse)
    for name in ("value", "elbo", "distortion", "rate", "prior"):
        np.testing.assert_allclose(found[name], 0.01)
    better = calibration.p_values(usual._replace(distortion=usual.distortion - 1e4))
    np.testing.assert_allclose(better["elbo"], 1)
    np.testing.assert_allclose(better["distortion"], 1)


def test_the_log_density_of_a_mixture_is_that_of_its_components():
    rng = np.random.default_rng(0)
    factors = np.tril(rng.standard_normal((2, 3, 3))).astype(np.float32)
    factors[:, range(3), range(3)] = np.abs(factors[:, range(3), range(3)]) + 0.5
    means = rng.standard_normal((2, 3)).astype(np.float32)
    mixture = Mixture(np.array([0.25, 0.75]), means, factors)
    z = rng.standard_normal((4, 3)).astype(np.float32)
    expected = np.zeros(4)
    for weight, mean, factor in zip(mixture.weights, means, factors, strict=True):
        covariance = (factor @ factor.T).astype(float)
        away = z - mean
        exponent = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
        expected += weight * np.exp(-0.5 * exponent) / np.sqrt(np.linalg.det(2 * np.pi * covariance))
    np.testing.assert_allclose(np.exp(Prior((3,), mixture).log_density(z)), expected, rtol=1e-5)


def test_truncated_normals_have_the_distribution_of_what_is_left():
    normals = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    cut = truncated(normals, 1.0)
    kept = normals[np.abs(normals) <= 1]  # the same distribution by throwing away
    np.testing.assert_allclose(
        np.quantile(cut, [0.1, 0.3, 0.5, 0.9]), np.quantile(kept, [0.1, 0.3, 0.5, 0.9]), atol=0.03
    )


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("calibration.npz", {"elbo": np.float32([3, 2, 1])}, "ascending"),
        ("calibration.npz", {"rate": np.float32([np.nan] * 40)}, "finite"),
        ("map.npz", {"components": np.zeros((3, 4), np.float32)}, "components"),
        ("map.npz", {"labels": np.full(40, 2, np.int16)}, "labels must number the manifest's 2"),
    ],
)
def test_a_broken_file_is_refused_with_what_to_do(tmp_path, file, change, words):
    (tmp_path / "draft").mkdir()
    draft = make_draft(tmp_path / "draft")
    with np.load(draft.folder / file) as archive:
        arrays = dict(archive)
    np.savez(draft.folder / file, **(arrays | change))
    bundle = read_bundle(publish(tmp_path / "models", "tiny", Draft(draft.folder, draft.manifest)))
    with pytest.raises(BundleError, match=words) as error:
        (read_calibration if file == "calibration.npz" else read_map)(bundle)
    assert "publish the model again" in str(error.value)
