"""Splits never move an image, digests notice every change, and sources are recognised."""

import numpy as np
import pytest

from training.data import images as data
from training.data.images import DataError, ImageTarget, Subset, pieces
from training.data.load import load
from training.data.sources import data_folder, guessed_size, model_name


def random_images(n, seed=0, shape=(5, 4, 1)):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def members(images, rows):
    return {images[row].tobytes() for row in rows}


def test_adding_and_shuffling_images_moves_none_of_them():
    few, more = random_images(300), random_images(300, seed=1)
    before = data.split(few)
    together = np.concatenate([more, few])[np.random.default_rng(2).permutation(600)]
    after = data.split(together)
    for part in ("train", "validation", "test"):
        assert members(few, getattr(before, part)) <= members(together, getattr(after, part))


def test_duplicates_fall_on_the_same_side():
    images = random_images(200)
    parts = data.split(np.concatenate([images, images[::-1]]))
    doubled = np.concatenate([images, images[::-1]])
    sides = [members(doubled, rows) for rows in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, sides)) == 200


@pytest.mark.parametrize(("official", "shares"), [(0, (0.8, 0.1, 0.1)), (2000, (0.72, 0.08, 0.2))])
def test_the_parts_are_disjoint_complete_and_of_the_contracts_sizes(official, shares):
    parts = data.split(random_images(10_000, shape=(2, 2, 3)), official)
    rows = [parts.train, parts.validation, parts.test]
    assert sorted(np.concatenate(rows)) == list(range(10_000))
    assert [len(part) / 10_000 for part in rows] == pytest.approx(shares, abs=0.01)
    if official:
        assert parts.test.tolist() == list(range(8000, 10_000))


def test_digits():
    digits = load("digits")
    assert digits.pixels.shape == (1797, 8, 8, 1)
    assert digits.pixels.dtype == np.uint8
    assert len(np.unique(digits.pixels)) == digits.levels == 17
    assert (digits.pixels.min(), digits.pixels.max()) == (0, 255)
    assert digits.labels.dtype == np.int64
    assert digits.label_names == tuple("0123456789")
    assert not digits.binary
    # A literal: the split is part of every published figure, so it must not change unnoticed.
    assert [len(part) for part in (digits.split.train, digits.split.validation, digits.split.test)] == [
        1412,
        221,
        164,
    ]
    assert digits.digest == load("digits").digest


def test_the_digest_knows_pixels_labels_and_shape():
    images, labels = random_images(200), np.zeros(200, np.int64)
    changed, relabelled = images.copy(), labels.copy()
    changed[7, 0, 0, 0] ^= 1
    relabelled[7] = 1
    digests = {
        data.from_arrays("a", *arrays).digest
        for arrays in (
            (images, labels),
            (images,),
            (changed, labels),
            (images, relabelled),
            (images.reshape(200, 4, 5, 1), labels),
        )
    }
    assert len(digests) == 5


def test_a_large_array_is_looked_at_in_pieces_and_nothing_changes(monkeypatch):
    images = random_images(300)
    whole, bw = data.from_arrays("a", images), data.from_arrays("b", (images > 127) * np.uint8(255))
    monkeypatch.setattr(data, "PIECE", 7 * 20)  # seven images
    assert [len(piece) for piece in pieces(images)] == [7] * 42 + [6]
    again = data.from_arrays("a", images)
    assert again.digest == whole.digest
    np.testing.assert_array_equal(again.split.train, whole.split.train)
    assert not again.binary
    assert data.from_arrays("b", bw.pixels).binary


def test_a_part_reads_its_rows_as_it_is_sliced():
    images = random_images(50)
    part = Subset(images, np.array([3, 7, 8, 40]))
    assert len(part) == 4
    np.testing.assert_array_equal(part[1:3], images[[7, 8]])
    np.testing.assert_array_equal(part[2:100], images[[8, 40]])


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(28, 28)] * 9, (28, 28)),
        ([(30, 40), (60, 80), (62, 80)], (48, 64)),  # one aspect ratio, within 5 %
        ([(30, 40), (40, 30), (36, 36)], (36, 36)),  # several: a square of the median side
        ([(480, 640), (640, 480), (3000, 4000)], (64, 64)),
        ([(2, 3)] * 3, (4, 4)),
    ],
)
def test_the_size_is_guessed_from_the_median(sizes, expected):
    assert guessed_size(np.array(sizes, np.int32)) == expected


def test_few_images_are_warned_of_once(tmp_path):
    said = []
    np.save(tmp_path / "few.npy", random_images(150))
    load(str(tmp_path / "few.npy"), say=said.append)
    assert said == ["warning: 150 images are few: a good model needs thousands"]
    load("digits", say=said.append)
    assert len(said) == 1


def test_digits_are_resized_when_asked():
    said = []
    digits = load("digits", ImageTarget((12, 10), 3, "stretch"), said.append)
    assert digits.shape == (12, 10, 3)
    assert digits.levels == 256
    assert "resized from 8×8×1 to 12×10×3 (stretch)" in said[0]
    assert (digits.pixels[..., 0] == digits.pixels[..., 2]).all()


@pytest.mark.parametrize(
    ("path", "name"),
    [("My Photos (2)", "my-photos-2"), ("Bilder", "bilder"), ("stats", "images"), ("ü", "images")],
)
def test_the_data_s_name_can_be_a_model_s(path, name, tmp_path):
    assert model_name(tmp_path / path) == name


def test_black_and_white_images_are_known_as_such():
    images = random_images(200)
    assert data.from_arrays("a", np.where(images > 127, 255, 0).astype(np.uint8)).binary
    assert not data.from_arrays("a", images).binary


def test_unusable_images_are_refused_with_a_reason():
    with pytest.raises(
        DataError,
        match=r"there is no data set and no file 'imagenet'; use digits, mnist, fashion-mnist, a folder",
    ):
        load("imagenet")
    with pytest.raises(DataError, match=r"a has 99 usable images; a model needs at least 100"):
        data.from_arrays("a", random_images(99))
    with pytest.raises(DataError, match=r"the (train|validation) split would have 0"):
        data.from_arrays("a", np.zeros((100, 4, 4, 1), np.uint8))  # all the same: all on one side
    with pytest.raises(DataError, match="float64"):
        data.from_arrays("a", np.zeros((200, 4, 4, 1)))
    with pytest.raises(DataError, match="labels"):
        data.from_arrays("a", random_images(200), np.zeros(3, np.int64))


def test_the_data_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("VAESERVE_DATA", str(tmp_path / "data"))
    assert data_folder() == tmp_path / "data"
    monkeypatch.delenv("VAESERVE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "vaeserve"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".cache" / "vaeserve"
