"""p-values are exact where theory gives their distribution, and bad files are refused."""

import numpy as np
import pytest

from tests.bundle.editing import with_arrays
from vaeserve.bundle.calibration import calibrate, read_calibration
from vaeserve.bundle.files import BundleError
from vaeserve.bundle.scores import Scores


def scores(n, seed):
    """Scores of n exchangeable images; all of them are correlated."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(n)
    columns = [common + rng.standard_normal(n) for _ in range(4)]
    error = np.exp(common).astype(np.float32)
    return Scores(columns[0] * 10 + 100, np.exp(columns[1]), columns[2], error, columns[3])


def test_p_values_of_exchangeable_images_are_uniform():
    """P(p ≤ t) = t up to 1 / (1 + m), for every score and for the combined one."""
    shares = {}
    for seed in range(40):
        for name, p in calibrate(scores(499, (seed, 0))).p_values(scores(500, (seed, 1))).items():
            assert 0 < p.min() < p.max() <= 1
            shares.setdefault(name, []).append([(p <= t).mean() for t in (0.05, 0.5)])
    for name, found in shares.items():
        np.testing.assert_allclose(np.mean(found, axis=0), [0.05, 0.5], atol=0.02, err_msg=name)


def test_only_worse_scores_are_unusual():
    calibration = calibrate(scores(99, 0))
    usual = scores(99, 0)
    worse = usual._replace(
        distortion=usual.distortion + 1e4,
        rate=usual.rate + 1e4,
        log_prior=usual.log_prior - 1e4,
        local=usual.local + 1e4,
    )
    found = calibration.p_values(worse)
    for name in ("value", "elbo", "distortion", "rate", "prior", "local"):
        assert (found[name] < 0.01).all(), name
    of_local = calibration.p_values(usual._replace(local=usual.local + 1e4))
    assert (of_local["value"] < 0.01).all()
    np.testing.assert_allclose(of_local["elbo"], calibration.p_values(usual)["elbo"])
    better = calibration.p_values(usual._replace(distortion=usual.distortion - 1e4))
    np.testing.assert_allclose(better["elbo"], 1)
    np.testing.assert_allclose(better["distortion"], 1)


TAILS = {
    "exponential": lambda rng, n: rng.exponential(size=n),
    "normal": lambda rng, n: rng.standard_normal(n),
    "log-normal": lambda rng, n: rng.lognormal(size=n),  # an error, or a rate
    "Pareto": lambda rng, n: 1 + rng.pareto(2, n),
}


@pytest.mark.parametrize("kind", TAILS)
@pytest.mark.parametrize("m", [76, 400])
def test_few_held_out_images_keep_the_promised_rate_of_false_positives(kind, m):
    """P(p ≤ t) is not above t where no rank is so small, nor 0 as with ranks; over 2,000 calibrations."""
    draw, t = TAILS[kind], 0.2 / m
    false = []
    for seed in range(2000):
        rng = np.random.default_rng((seed, m))
        held_out, fresh = (
            Scores(each, each, -np.log(each), each.astype(np.float32), np.log(each))
            for each in (np.maximum(draw(rng, n), 1e-3) for n in (m, 200))
        )
        p_values = calibrate(held_out).p_values(fresh)
        false.append([(p_values[name] <= t).mean() for name in ("error", "local", "value")])
    found = np.mean(false, axis=0)
    assert found.max() < 1.15 * t
    assert found.min() > 0
    if kind == "Pareto":  # its logarithm is exponential, so the tail is exact
        assert found[:2].min() > 0.85 * t


def test_below_fifty_held_out_images_no_p_value_is_extrapolated():
    few, enough = calibrate(scores(49, 0)), calibrate(scores(50, 0))
    far = Scores(np.array([1e9]), np.array([1e9]), np.array([-1e9]), np.float32([1e9]), np.array([1e9]))
    assert few.smallest == 1 / 50
    assert enough.smallest == 0
    for name, p in few.p_values(far).items():
        assert p == 1 / 50, name
        assert 0 < enough.p_values(far)[name] < 1e-3, name


def test_a_calibration_without_local_scores_still_counts():
    """Bundles of earlier versions have none: the other scores decide."""
    without = scores(99, 0)._replace(local=None)
    calibration = calibrate(without)
    assert "local" not in calibration.arrays()
    assert "local" not in calibration.p_values(scores(9, 1))


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
