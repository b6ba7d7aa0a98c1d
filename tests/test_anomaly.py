"""The benchmark of anomaly detection: its defects are local and visible, and its figures are right."""

import json

import numpy as np
import pytest

from benchmarks import anomaly
from benchmarks.defects import KINDS, SIZES, damaged
from training.data.load import load


def pictures(n, channels=3):
    """A bright textured square on black, at another place in each image."""
    rng = np.random.default_rng(0)
    images = np.zeros((n, 48, 48, channels), np.uint8)
    for image in images:
        top, left = rng.integers(4, 16, 2)
        image[top : top + 28, left : left + 28] = rng.integers(90, 200, (28, 28, channels))
    return images


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_defect_is_visible_local_and_on_the_object(kind, channels):
    images = pictures(20, channels)
    areas = []
    for size, share in SIZES.items():
        found, masks = damaged(images, kind, size, seed=0)
        change = np.abs(found.astype(int) - images).max(axis=3)
        assert (change[~masks] <= 4).all()
        assert masks.any(axis=(1, 2)).all()
        assert np.median([each[mask].mean() for each, mask in zip(change, masks, strict=True)]) > 15
        for mask, image in zip(masks, images, strict=True):
            rows, columns = np.nonzero(mask)
            assert max(np.ptp(rows), np.ptp(columns)) <= 2.5 * share * 48 + 2
            assert (mask & (image.max(axis=2) > 0)).any()
        areas.append(masks.mean())
    assert areas[0] < areas[1] < areas[2] < 0.2


def test_a_defect_does_not_depend_on_the_other_images():
    images = pictures(6)
    whole, _ = damaged(images, "scratch", "medium", seed=1)
    part, _ = damaged(images[:3], "scratch", "medium", seed=1)
    np.testing.assert_array_equal(part, whole[:3])
    assert (damaged(images, "scratch", "medium", seed=2)[0] != whole).any()


def test_the_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    usual, unusual = rng.integers(0, 9, 50), rng.integers(3, 12, 40)
    pairs = unusual[:, None] - usual
    assert anomaly.auroc(usual, unusual) == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)


@pytest.mark.heavy
def test_every_score_gets_a_figure_and_a_finished_line_is_kept(tmp_path, capsys):
    digits = load("digits")
    few = digits.labels < 2
    np.savez(tmp_path / "two.npz", images=digits.pixels[few], labels=digits.labels[few])
    asked = [str(tmp_path / "two.npz"), "--minutes", "0.05", "--out", str(tmp_path / "out")]
    anomaly.main(asked)
    table = capsys.readouterr().out
    (path,) = (tmp_path / "out").glob("*/lines.json")
    lines = json.loads(path.read_text())
    assert len(lines) == len(KINDS) * len(SIZES) + 2
    for name, line in lines.items():
        assert {"p_value", "local", "PCA", "PCA local", "NN pixels", "NN means", "forest", "FPR"} <= set(line)
        assert all(0 <= value <= 1 for value in line.values()), name
    assert lines["large spot"]["local"] > 0.6
    assert lines["without 1"]["p_value"] > 0.9
    assert table.count("\n|") == len(lines) + 3
    before = path.read_bytes()
    anomaly.main(asked)
    assert path.read_bytes() == before
