"""p-values are exact where theory gives their distribution, and bad files are refused."""

import numpy as np
import pytest

from tests.bundle.editing import with_arrays
from vaeserve.bundle.calibration import calibrate, read_calibration
from vaeserve.bundle.files import BundleError
from vaeserve.bundle.scores import Scores


def scores(n, seed):
    """Scores of n exchangeable images; the four scores are correlated."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(n)
    columns = [common + rng.standard_normal(n) for _ in range(3)]
    return Scores(columns[0] * 10 + 100, np.exp(columns[1]), columns[2], np.exp(common).astype(np.float32))


def test_p_values_of_exchangeable_images_are_uniform():
    """P(p ≤ t) = t up to 1 / (1 + m), for every score and for the combined one."""
    shares = {}
    for seed in range(40):
        for name, p in calibrate(scores(499, (seed, 0))).p_values(scores(500, (seed, 1))).items():
            assert p.min() >= 1 / 500
            assert p.max() <= 1
            shares.setdefault(name, []).append([(p <= t).mean() for t in (0.05, 0.5)])
    for name, found in shares.items():
        np.testing.assert_allclose(np.mean(found, axis=0), [0.05, 0.5], atol=0.02, err_msg=name)


def test_only_worse_scores_are_unusual():
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"elbo": np.float32([3, 2, 1])}, "ascending"),
        ({"rate": np.float32([np.nan] * 40)}, "finite"),
    ],
)
def test_a_bad_calibration_is_refused(tmp_path, change, words):
    with pytest.raises(BundleError, match=rf"{words}.*publish the model again"):
        read_calibration(with_arrays(tmp_path, "calibration.npz", **change))
