"""A folder of pictures as people have it: nested, mixed, partly broken."""

import numpy as np
import pytest
from PIL import Image

from training.data import folder as module
from training.data.images import DataError, ImageTarget
from training.data.load import load
from vaeserve.bundle.images import image_size, read_image

KINDS = ("circles", "squares", "stripes")


def picture(number, grey=False, side=None):
    """A smooth random picture whose sides are between 20 and 60."""
    rng = np.random.default_rng(number)
    size = (side, side) if side else tuple(int(x) for x in rng.integers(20, 61, 2))
    shape = (4, 4) if grey else (4, 4, 3)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).resize(size)


def fill(folder, count=120, classes=KINDS, suffix=".jpg", **options):
    for number in range(count):
        home = folder / classes[number % len(classes)] if classes else folder
        home.mkdir(parents=True, exist_ok=True)
        picture(number, **options).save(home / f"{number:03d}{suffix}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes, nested; JPEG, PNG, GIF, WebP, BMP, TIFF and PPM in many modes; four that are none."""
    folder = tmp_path_factory.mktemp("photos")
    fill(folder, 120)
    deep = folder / "circles" / "2021" / "summer"
    deep.mkdir(parents=True)
    for number, (mode, suffix) in enumerate(
        [
            ("L", "jpg"), ("CMYK", "JPEG"), ("RGBA", "png"), ("LA", "png"), ("P", "gif"), ("1", "bmp"),
            ("RGB", "webp"), ("RGB", "tiff"), ("CMYK", "tif"), ("L", "pgm"), ("RGB", "ppm"), ("P", "png"),
        ]
    ):  # fmt: skip
        image = picture(1000 + number).convert("L" if mode == "1" else "RGB").convert(mode)
        image.save(deep / f"{number}.{suffix}")
    Image.fromarray(np.full((30, 30), 300, np.uint16)).save(deep / "sixteen-bit.png")
    good = (folder / "circles" / "000.jpg").read_bytes()
    (folder / "circles" / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "squares" / "header.jpg").write_bytes(good[:30])
    (folder / "squares" / "nothing.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("a text file")
    (folder / ".DS_Store").write_bytes(b"not worth a word")
    return folder


def test_a_mixed_folder_becomes_one_array_with_labels(photos):
    said = []
    images = load(str(photos), say=said.append)
    assert len(images.pixels) == 120 + 12 + 1
    assert images.pixels.dtype == np.uint8
    assert images.shape[2] == 3
    assert images.label_names == KINDS
    assert np.bincount(images.labels).tolist() == [40 + 13, 40, 40]
    assert [line.partition(":")[0] for line in images.skipped] == [
        "circles/cut.jpg",
        "notes.txt",
        "squares/header.jpg",
        "squares/nothing.png",
    ]
    output = "\n".join(said)
    assert "resized to" in output
    assert "--image-size, --channels, --fit" in output
    assert "4 files skipped: circles/cut.jpg, notes.txt, squares/header.jpg, …" in output
    assert "3 classes from the sub-folders" in output


def test_the_pixels_are_those_of_the_one_preprocessing_path(photos):
    images = load(str(photos), ImageTarget((24, 20), 3, "cover"))
    assert images.shape == (24, 20, 3)
    first = (photos / "circles" / "000.jpg").read_bytes()
    expected = read_image(first, height=24, width=20, channels=3, fit="cover")
    assert expected.tobytes() in {image.tobytes() for image in images.pixels}


def test_tiff_and_pnm_are_read_without_loss(photos):
    for name in ("7.tiff", "10.ppm"):
        path = photos / "circles" / "2021" / "summer" / name
        expected = np.asarray(Image.open(path))
        height, width = expected.shape[:2]
        found = read_image(module._content(path), height=height, width=width, channels=3, fit="contain")
        np.testing.assert_array_equal(found, expected)


def test_adding_a_file_moves_no_image_to_another_split(tmp_path):
    fill(tmp_path, 130, side=24)
    before = load(str(tmp_path))
    picture(7777, side=24).save(tmp_path / "circles" / "aaa.jpg")
    after = load(str(tmp_path))
    for part in ("train", "validation", "test"):
        old, new = (
            {images.pixels[row].tobytes() for row in getattr(images.split, part)}
            for images in (before, after)
        )
        assert old <= new


def test_grey_pictures_stay_grey_also_when_stored_in_colour(tmp_path):
    fill(tmp_path / "grey", 100, classes=(), grey=True)
    assert load(str(tmp_path / "grey")).shape[2] == 1
    for path in (tmp_path / "grey").iterdir():
        Image.open(path).convert("RGB").save(path.with_suffix(".png"))
        path.unlink()
    assert load(str(tmp_path / "grey")).shape[2] == 1
    picture(5).save(tmp_path / "grey" / "colour.png")
    assert load(str(tmp_path / "grey")).shape[2] == 3
    assert load(str(tmp_path / "grey"), ImageTarget(channels=1)).shape[2] == 1


def test_without_sub_folders_there_are_no_labels(tmp_path):
    fill(tmp_path, 100, classes=())
    assert load(str(tmp_path)).labels is None
    said = []
    (tmp_path / "sub").mkdir()
    (tmp_path / "000.jpg").rename(tmp_path / "sub" / "000.jpg")
    assert load(str(tmp_path), say=said.append).labels is None
    assert any("99 images are not in a sub-folder" in text for text in said)


def test_train_and_test_folders_are_an_official_split(tmp_path):
    fill(tmp_path / "train", 200, side=20)
    fill(tmp_path / "test", 60, side=20)
    for number, path in enumerate(sorted((tmp_path / "test").rglob("*.jpg"))):
        picture(5000 + number, side=20).save(path)
    images = load(str(tmp_path))
    assert images.label_names == KINDS
    assert images.split.test.tolist() == list(range(200, 260))
    assert 5 < len(images.split.validation) < 40


def test_too_few_pictures_are_a_clear_error(tmp_path):
    with pytest.raises(DataError, match=r"has no images and 0 other files"):
        load(str(tmp_path))
    fill(tmp_path, 30, classes=())
    (tmp_path / "broken.jpg").write_bytes(b"no")
    message = r"has 30 usable images \(1 files were skipped, the first: broken.jpg: .*\); .* 100"
    with pytest.raises(DataError, match=message):
        load(str(tmp_path))


def test_a_link_that_leads_back_is_followed_once(tmp_path):
    fill(tmp_path, 100, classes=("a", "b"))
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert len(load(str(tmp_path)).pixels) == 100


def test_the_header_is_enough_for_the_size(photos):
    """The pixels of a PNG are not decoded to look for EXIF: of the half file the size is known."""
    path = photos / "circles" / "big.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.unlink()
    assert image_size(content[: len(content) // 2]) == (200, 300, 1)


class TestMapped:
    """Sets larger than the limit: a limit of 0 makes every set one."""

    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("VAESERVE_DATA", str(tmp_path / "cache"))
        return tmp_path / "cache" / "decoded"

    def test_they_are_the_same_and_lie_in_a_file(self, photos, cache):
        said = []
        mapped, plain = load(str(photos), ImageTarget(memory_limit=0), said.append), load(str(photos))
        assert mapped.digest == plain.digest
        assert mapped.skipped == plain.skipped
        assert not mapped.pixels.flags.writeable
        assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]
        assert any("decoding into" in text for text in said)

    def test_they_are_decoded_once(self, photos, cache, monkeypatch):
        first = load(str(photos), ImageTarget((16, 16), 3, memory_limit=0))
        monkeypatch.setattr(module, "read_image", None)  # would fail
        again = load(str(photos), ImageTarget((16, 16), 3, memory_limit=0))
        assert again.digest == first.digest
        assert again.skipped == first.skipped

    def test_a_changed_file_is_decoded_again(self, tmp_path, cache):
        fill(tmp_path / "set", 100, side=16)
        first = load(str(tmp_path / "set"), ImageTarget(memory_limit=0))
        picture(999, side=16).save(tmp_path / "set" / "circles" / "000.jpg")
        assert load(str(tmp_path / "set"), ImageTarget(memory_limit=0)).digest != first.digest

    def test_a_full_disk_is_known_before(self, photos, cache, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        with pytest.raises(DataError, match=r"free some space, set VAESERVE_DATA to a larger disk"):
            load(str(photos), ImageTarget(memory_limit=0))
