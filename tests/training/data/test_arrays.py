"""Images from .npz and .npy files, by the names that people already use."""

import numpy as np
import pytest

from training.data import arrays
from training.data.images import DataError, ImageTarget
from training.data.load import load
from vaeserve.bundle.images import fit_array

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (150, 9, 7), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(150) % 3


def saved(folder, **content):
    np.savez(folder / "set.npz", **content)
    return str(folder / "set.npz")


def test_npy(tmp_path):
    np.save(tmp_path / "My Set.npy", GREY)
    images = load(str(tmp_path / "My Set.npy"))
    assert images.name == "my-set"
    np.testing.assert_array_equal(images.pixels, GREY[..., None])
    assert images.labels is None
    np.save(tmp_path / "colour.npy", COLOUR)
    np.testing.assert_array_equal(load(str(tmp_path / "colour.npy")).pixels, COLOUR)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_labels(tmp_path, save):
    save(tmp_path / "set.npz", images=GREY, labels=LABELS + 5)
    images = load(str(tmp_path / "set.npz"))
    np.testing.assert_array_equal(images.labels, LABELS)
    assert images.label_names == ("5", "6", "7")


def test_labels_may_be_words_or_have_names(tmp_path):
    words = np.array(["cat", "dog", "bird"])[LABELS]
    images = load(saved(tmp_path, images=GREY, labels=words))
    assert images.label_names == ("bird", "cat", "dog")
    assert [images.label_names[label] for label in images.labels[:3]] == ["cat", "dog", "bird"]
    named = load(saved(tmp_path, images=GREY, labels=LABELS, label_names=["a", "b", "c", "d"]))
    assert named.label_names == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),  # Keras
        ("train_images", "train_labels", "test_images", "test_labels"),  # MedMNIST
    ],
)
def test_an_official_test_split_is_kept(tmp_path, names):
    content = dict(zip(names, (GREY[:110], LABELS[:110, None], GREY[110:], LABELS[110:, None]), strict=True))
    if "train_images" in names:
        content |= {"val_images": COLOUR[:5, :, :7, 0].repeat(2, 1)[:, :9], "val_labels": LABELS[:5, None]}
    images = load(saved(tmp_path, **content))
    n = len(images.pixels)
    assert n == 150 + 5 * ("train_images" in names)
    assert images.split.test.tolist() == list(range(n - 40, n))
    np.testing.assert_array_equal(images.pixels[-40:, :, :, 0], GREY[110:])
    np.testing.assert_array_equal(images.labels[-40:], LABELS[110:])


def test_booleans_and_floats_become_grey_levels(tmp_path):
    images = load(saved(tmp_path, images=GREY > 127))
    assert images.binary
    np.testing.assert_array_equal(images.pixels[..., 0] == 255, GREY > 127)
    images = load(saved(tmp_path, anything=(GREY / 255.0).astype(np.float32)))
    np.testing.assert_array_equal(images.pixels[..., 0], GREY)


def test_images_are_resized_when_asked_and_capped_when_not(tmp_path):
    path = saved(tmp_path, images=COLOUR)
    images = load(path, ImageTarget((6, 10), 1, "stretch"))
    assert images.shape == (6, 10, 1)
    expected = fit_array(COLOUR[3], height=6, width=10, channels=1, fit="stretch")
    np.testing.assert_array_equal(images.pixels[3], expected)
    large = RANDOM.integers(0, 256, (100, 96, 128), dtype=np.uint8)
    said = []
    assert load(saved(tmp_path, images=large), say=said.append).shape == (48, 64, 1)
    assert "resized from 96×128×1 to 48×64×1" in said[0]


def test_a_set_larger_than_memory_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setenv("VAESERVE_DATA", str(tmp_path))
    monkeypatch.setattr(arrays, "PIECE", 7 * 63)
    mapped = load(saved(tmp_path, images=GREY), ImageTarget(memory_limit=0))
    np.testing.assert_array_equal(mapped.pixels[..., 0], GREY)
    assert not mapped.pixels.flags.writeable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": GREY.astype(np.int64)}, "images is int64; images must be uint8"),
        ({"images": GREY.astype(float)}, r"floats from 0 to 255: bring them to \[0, 1\]"),
        ({"images": GREY / 255 * np.nan}, "floats from nan"),
        ({"images": COLOUR.transpose(0, 3, 1, 2).copy()}, "channels come last"),
        ({"images": np.asfortranarray(GREY)}, "Fortran order"),
        ({"images": GREY, "labels": LABELS[:3]}, "150 images but labels of shape"),
        ({"images": GREY, "labels": LABELS / 2}, "labels must be integers or strings, not float64"),
        ({"images": GREY, "labels": LABELS, "label_names": ["a"]}, "label_names has 1 names"),
        ({"a": GREY, "b": LABELS}, "has a, b: name the images `images`"),
        ({"x_train": GREY}, "has x_train but no x_test"),
        ({"x_train": GREY, "x_test": GREY, "y_train": LABELS}, "labels for some of its parts, but no y_test"),
        ({"x_train": GREY, "x_test": GREY[:, :5]}, "sizes differ"),
        ({"images": GREY[:50]}, "at least 100"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load(saved(tmp_path, **content))


def test_pickles_and_other_files_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}, {}], object), allow_pickle=True)
    (tmp_path / "b.npz").write_bytes(b"PK\3\4 no")
    (tmp_path / "c.txt").write_text("no images")
    for name, message in (
        ("a.npy", "images must be"),
        ("b.npz", "cannot be read as a .npz file"),
        ("c.txt", "neither"),
    ):
        with pytest.raises(DataError, match=message):
            load(str(tmp_path / name))


def test_a_cut_file_is_noticed(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-100])
    with pytest.raises(DataError, match="ends after 0 of 150 images"):
        load(str(tmp_path / "a.npy"))
