"""The local score: constructed errors whose usual size is known, and defects whose place is known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vaeserve.bundle.calibration import calibrate
from vaeserve.bundle.local_error import BINS, UsualError, region, smooth, usual_error
from vaeserve.bundle.scores import Scores

SIDE = 32


def erring(n, seed, deviation=None):
    """Smooth pictures, and images that differ from them by noise of a standard deviation [h, w] in levels."""
    rng = np.random.default_rng(seed)
    pictures = gaussian_filter(rng.normal(0, 600, (n, SIDE, SIDE, 3)), (0, 4, 4, 0)) + 128
    pictures = np.clip(np.rint(pictures), 40, 215).astype(np.uint8)
    deviation = np.full((SIDE, SIDE), 5.0) if deviation is None else deviation
    noise = rng.standard_normal(pictures.shape) * deviation[:, :, np.newaxis]
    return np.clip(np.rint(pictures + noise), 0, 255).astype(np.uint8), pictures


@pytest.fixture(scope="module")
def usual():
    return usual_error(*erring(200, 0), *erring(100, 1))


@pytest.mark.parametrize("deviation", [0.3, 2.0, 9.0])
def test_smoothing_is_a_gaussian_that_mirrors_at_the_border(deviation):
    values = np.random.default_rng(0).standard_normal((2, 3, 20, 11)).astype(np.float32)
    expected = gaussian_filter(values, (0, 0, deviation, deviation), mode="reflect")
    np.testing.assert_allclose(smooth(values, deviation), expected, atol=2e-4)


def test_the_usual_error_is_learnt_by_place():
    deviation = np.full((SIDE, SIDE), 2.0)
    deviation[:, SIDE // 2 :] = 20.0
    found = usual_error(*erring(200, 0, deviation), *erring(100, 1, deviation))
    left, right = found.place[0][:, :10].mean(), found.place[0][:, -10:].mean()
    assert np.sqrt(right / left) == pytest.approx(10, rel=0.15)


def test_the_usual_error_is_learnt_by_brightness():
    """Errors are three times as large where the reconstruction is bright, wherever that is."""
    rng = np.random.default_rng(0)
    pictures = np.repeat(rng.choice([60, 200], (300, SIDE, SIDE, 1)), 3, axis=3).astype(np.uint8)
    noise = rng.standard_normal(pictures.shape) * np.where(pictures < 128, 4, 12)
    images = np.rint(pictures + noise).astype(np.uint8)
    found = usual_error(images, pictures, images, pictures)
    dark, bright = (found.brightness[0][level * BINS // 256] for level in (60, 200))
    assert np.sqrt(bright / dark) == pytest.approx(3, rel=0.15)
    assert found.place[0].std() / found.place[0].mean() < 0.1


def test_ordinary_images_have_scores_about_nought(usual):
    images, pictures = erring(300, 2)
    local = usual.local(images, pictures)
    assert 0 < local.mean() < 1.5  # the maximum over scales, each of mean 0
    assert local.std() == pytest.approx(1, rel=0.4)
    np.testing.assert_allclose(local, usual.map(images, pictures).max(axis=(1, 2)))


def test_a_scratch_of_ten_pixels_is_found_where_it_is(usual):
    """Its squared error is a fortieth of the image's, so the mean hardly moves."""
    images, pictures = erring(50, 3)
    scratched = images.copy()
    scratched[:, 20, 5:15] = np.clip(scratched[:, 20, 5:15].astype(int) + 25, 0, 255)
    error, before = (np.square(each / 255 - pictures / 255).mean() for each in (scratched, images))
    assert error / before < 1.3
    assert usual.local(scratched, pictures).min() > usual.local(images, pictures).max()
    for found in usual.map(scratched, pictures):
        top, left, bottom, right = region(found)
        assert top <= 20 < bottom <= top + 7
        assert min(right, 15) - max(left, 5) >= 3
        assert right - left <= 16


def test_a_stain_that_noise_hides_in_each_pixel_is_found(usual):
    """Smoothing cancels the noise of five levels, and not a shift by four in one direction."""
    images, pictures = erring(50, 4)
    stained = images.copy()
    stained[:, 8:16, 8:16] += 4
    assert np.median(usual.local(stained, pictures)) > np.quantile(usual.local(images, pictures), 0.98)


def test_where_errors_are_usual_they_are_not_unusual():
    """The same scratch counts in a quiet place, and not in one where errors are ten times as large."""
    deviation = np.full((SIDE, SIDE), 2.0)
    deviation[:, SIDE // 2 :] = 20.0
    usual = usual_error(*erring(200, 0, deviation), *erring(100, 1, deviation))
    images, pictures = erring(50, 2, deviation)
    for columns, found in ((slice(2, 10), True), (slice(22, 30), False)):
        scratched = images.copy()
        scratched[:, 12, columns] = np.clip(scratched[:, 12, columns].astype(int) + 20, 0, 255)
        grew = usual.local(scratched, pictures) - usual.local(images, pictures)
        assert bool(np.median(grew) > 3) is found


def test_p_local_is_the_rank_among_held_out_images(usual):
    def scores(images, pictures):
        flat = np.ones(len(images))
        return Scores(flat, flat, flat, flat.astype(np.float32), usual.local(images, pictures))

    held_out, images = scores(*erring(400, 5)), scores(*erring(400, 6))
    p = calibrate(held_out, usual).p_values(images)["local"]
    as_unusual = [(np.float32(held_out.local) >= value).sum() for value in np.float32(images.local)]
    inside = images.local <= held_out.local.max()
    np.testing.assert_allclose(p[inside], (1 + np.array(as_unusual))[inside] / 401)
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.03)


def test_the_region_is_the_connected_one_around_the_most_unusual_place():
    found = np.full((12, 9), -4, np.float32)
    found[3:6, 2:5] = 5
    found[4, 5] = 6
    found[10, 7] = 5  # elsewhere
    assert region(found) == (3, 2, 6, 6)
    assert region(np.zeros((4, 5), np.float32)) == (0, 0, 4, 5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"place": np.ones((4, 3, 3), np.float32)}, "place must be float32"),
        ({"edges": None}, "edges must be"),
        ({"spread": np.zeros(4, np.float32)}, "spread must be above 0"),
        ({"centre": np.full(4, np.nan, np.float32)}, "finite"),
    ],
)
def test_arrays_that_do_not_fit_the_model_are_refused(usual, change, words):
    arrays = {name: array for name, array in (usual._asdict() | change).items() if array is not None}
    with pytest.raises(ValueError, match=words):
        UsualError.checked(arrays, (SIDE, SIDE, 3))


def test_images_that_are_too_large_are_refused():
    wide = np.zeros((1, 2, 3000, 1), np.uint8)
    with pytest.raises(ValueError, match="2,048 pixels a side"):
        usual_error(wide, wide, wide, wide)
