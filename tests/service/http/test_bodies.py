import base64
import io
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.core.problems import BadImage, InvalidRequest, Problem, TooLarge, WrongShape
from service.core.service import Budget
from service.http import bodies
from tests.arrays import npy
from vaeserve.bundle.images import TooManyPixels, encode_image
from vaeserve.bundle.manifest import ImageSpec, LatentSpec, Manifest

BUDGET = Budget(images=8, pixels=10_000, all_pixels=20_000)


def manifest(height=4, width=5, channels=1, latent=(3,)):
    return Manifest(
        name="some",
        version=1,
        created=datetime.now(UTC),
        image=ImageSpec(height=height, width=width, channels=channels),
        latent=LatentSpec(shape=latent),
    )


GREY, COLOUR = manifest(), manifest(4, 5, 3, (2, 3, 4))


def png(array):
    return encode_image(np.asarray(array, np.uint8))


def text(data):
    return base64.b64encode(data).decode()


def pixels(channels=1, n=2):
    return np.random.default_rng(0).integers(0, 256, (n, 4, 5, channels), dtype=np.uint8)


@pytest.mark.parametrize(("model", "channels"), [(GREY, 1), (COLOUR, 3)])
def test_one_and_the_same_image_in_every_form(model, channels):
    images = pixels(channels=channels)
    files = [png(image) for image in images]
    for image, file in zip(images, files, strict=True):
        np.testing.assert_array_equal(bodies.images_from_file(file, model, BUDGET), image[np.newaxis])
    mixed = [text(files[0]), images[1].tolist()]
    np.testing.assert_array_equal(bodies.images_from_list(mixed, model, BUDGET), images)
    np.testing.assert_array_equal(bodies.images_from_npy(npy(images), model, BUDGET), images)
    np.testing.assert_array_equal(
        bodies.images_from_npy(npy(np.asfortranarray(images)), model, BUDGET), images
    )


def test_grey_images_need_no_channel_axis():
    images = pixels()
    np.testing.assert_array_equal(bodies.images_from_npy(npy(images[..., 0]), GREY, BUDGET), images)
    np.testing.assert_array_equal(bodies.images_from_list(images[..., 0].tolist(), GREY, BUDGET), images)
    with pytest.raises(WrongShape):
        bodies.images_from_list(images[..., 0].tolist(), COLOUR, BUDGET)
    with pytest.raises(WrongShape):
        bodies.images_from_npy(npy(images[..., 0]), COLOUR, BUDGET)


def test_files_are_fitted_and_arrays_are_not():
    large = np.zeros((30, 60, 3), np.uint8)
    assert bodies.images_from_file(png(large), GREY, BUDGET).shape == (1, 4, 5, 1)
    assert bodies.images_from_list([text(png(large))], COLOUR, BUDGET).shape == (1, 4, 5, 3)
    with pytest.raises(WrongShape, match=r"\[30, 60, 3\]; some@1 takes \[4, 5, 3\], and only image files"):
        bodies.images_from_list([large.tolist()], COLOUR, BUDGET)
    with pytest.raises(WrongShape, match=r"\[1, 30, 60, 3\]; some@1 takes images \[n, 4, 5, 3\]"):
        bodies.images_from_npy(npy(large[np.newaxis]), COLOUR, BUDGET)


def test_base64_as_people_write_it():
    image = pixels(n=1)
    wrapped = "\n".join(text(png(image[0]))[i : i + 20] for i in range(0, 200, 20))
    for item in (wrapped, "data:image/png;base64," + text(png(image[0]))):
        np.testing.assert_array_equal(bodies.images_from_list([item], GREY, BUDGET), image)


@pytest.mark.parametrize(
    ("item", "kind", "said"),
    [
        ("abc", InvalidRequest, "/images/1 is not base64"),
        ("é", InvalidRequest, "/images/1 is not base64"),
        ("", BadImage, "/images/1 the bytes are not a readable image"),
        (text(b"hello"), BadImage, "/images/1 the bytes are not a readable image"),
        (text(png(pixels()[0])[:60]), BadImage, "/images/1 the image is broken or truncated"),
        ([[1, 2], [3]], WrongShape, "/images/1 has lists of different lengths"),
        ([[[1], [2, 3]]], WrongShape, "/images/1 has lists of different lengths"),
        ([], WrongShape, r"/images/1 is \[0\]; some@1 takes \[4, 5, 1\]"),
    ],
)
def test_errors_in_images_name_their_place(item, kind, said):
    with pytest.raises(kind, match=said) as refused:
        bodies.images_from_list([text(png(pixels()[0])), item], GREY, BUDGET)
    assert [error.pointer for error in refused.value.errors] == ["/images/1"]


def test_a_bare_file_that_is_no_image():
    with pytest.raises(BadImage, match=r"^The bytes are not a readable image .*; send PNG, JPEG") as refused:
        bodies.images_from_file(b"GIF89a", GREY, BUDGET)
    assert refused.value.errors == ()


def test_limits_on_pixels_and_count():
    with pytest.raises(TooManyPixels):
        bodies.images_from_file(png(np.zeros((101, 100, 1))), GREY, BUDGET)
    almost = text(png(np.zeros((90, 100, 1))))
    bodies.images_from_list([almost] * 2, GREY, BUDGET)
    with pytest.raises(TooManyPixels, match="20,000 pixels together"):
        bodies.images_from_list([almost] * 3, GREY, BUDGET)
    image = pixels()[0].tolist()
    with pytest.raises(TooLarge, match="9 images are more than the 8"):
        bodies.images_from_list([image] * 9, GREY, BUDGET)
    with pytest.raises(TooLarge, match="9 images are more than the 8"):
        bodies.images_from_npy(npy(np.zeros((9, 4, 5, 1), np.uint8)), GREY, BUDGET)
    with pytest.raises(TooLarge, match="9 latents are more than the 8"):
        bodies.latents_from_npy(npy(np.zeros((9, 3), np.float32)), GREY, BUDGET)


def test_latents():
    values = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(bodies.latents_from_list(values.tolist(), COLOUR, BUDGET), values)
    np.testing.assert_array_equal(bodies.latents_from_npy(npy(values), COLOUR, BUDGET), values)
    assert bodies.latents_from_list([[1, 2, 3]], GREY, BUDGET).dtype == np.float32


@pytest.mark.parametrize(
    ("items", "kind", "said"),
    [
        ([[0.0, 0, 0], [0.0, 0]], WrongShape, r"/latents/1 is \[2\]; some@1 takes \[3\]"),
        ([[0.0, 0, 0], [[0.0, 0, 0]]], WrongShape, r"/latents/1 is \[1, 3\]"),
        ([[0.0, 0, 0], [0, 1e39, 0]], InvalidRequest, "/latents/1 has values that are not finite as float32"),
        ([[0.0, 0, 0], [[0.0], [1.0, 2.0]]], WrongShape, "/latents/1 has lists of different lengths"),
    ],
)
def test_errors_in_latents_name_their_place(items, kind, said):
    with pytest.raises(kind, match=said) as refused:
        bodies.latents_from_list(items, GREY, BUDGET)
    assert [error.pointer for error in refused.value.errors] == ["/latents/1"]


@pytest.mark.parametrize(
    ("array", "kind", "said"),
    [
        (np.zeros((2, 3)), WrongShape, r"float64; send float32, for example .*astype\('float32'\)"),
        (np.zeros((2, 3), ">f4"), WrongShape, ">f4; send float32"),
        (np.zeros((2, 4), np.float32), WrongShape, r"\[2, 4\]; some@1 takes latents \[n, 3\]"),
        (np.zeros(3, np.float32), WrongShape, r"\[3\]; some@1 takes latents \[n, 3\]"),
        (np.float32(1), WrongShape, r"\[\]; some@1 takes"),
        (np.zeros((0, 3), np.float32), InvalidRequest, "no latents; send at least one"),
        (np.full((2, 3), np.nan, np.float32), InvalidRequest, "/latents/0 has values that are not finite"),
        (np.zeros(2, [("a", "f4")]), WrongShape, "send float32"),
    ],
)
def test_npy_of_another_type_or_shape(array, kind, said):
    with pytest.raises(kind, match=said):
        bodies.latents_from_npy(npy(array), GREY, BUDGET)


def header(shape, descr="<f4", extra=""):
    body = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}{extra}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00",
        npy(np.zeros((2, 3), np.float32))[:-1],
        npy(np.zeros((2, 3), np.float32)) + b"x",
        header((1, 3), "|O") + b"\x80\x04.",
        header((10**12, 3)),
        header((-1, -6)) + bytes(24),
        header((0, 10**30)),
        header("(2, 3") + bytes(24),
        header("(True, 6)") + bytes(24),
        header((1,) * 70 + (6,)) + bytes(24),
        header((2, 3), extra=", 'evil': 1") + bytes(24),
        header("(2L, 3L)") + bytes(24),
        header("[" * 5000),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    ],
)
def test_npy_that_lies(body):
    with pytest.raises(InvalidRequest):
        bodies.latents_from_npy(body, GREY, BUDGET)


def test_npy_whose_numbers_are_unaligned_is_read():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    body = header((2, 3), extra=" ") + values.tobytes()
    np.testing.assert_array_equal(bodies.latents_from_npy(body, GREY, BUDGET), values)


@settings(deadline=None)
@given(st.data())
def test_damaged_bodies_are_read_or_refused(data):
    """No byte of a body, changed or missing, makes a reader fail otherwise than with a problem."""
    images = pixels(n=1)
    whole, reader = data.draw(
        st.sampled_from(
            [
                (png(images[0]), bodies.images_from_file),
                (_file(images[0], "JPEG"), bodies.images_from_file),
                (_file(images[0], "GIF"), bodies.images_from_file),
                (_file(images[0], "WEBP"), bodies.images_from_file),
                (_file(images[0], "BMP"), bodies.images_from_file),
                (npy(images), bodies.images_from_npy),
                (npy(np.zeros((1, 3), np.float32)), bodies.latents_from_npy),
            ]
        )
    )
    body = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        rows = reader(bytes(body), GREY, BUDGET)
    except (Problem, TooManyPixels):
        return
    assert len(rows) == 1


def _file(image, kind):
    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, kind)
    return file.getvalue()
