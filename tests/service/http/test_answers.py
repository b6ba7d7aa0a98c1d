"""Answers as bytes, and what comes back when they are read again."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from service.http import answers, bodies
from service.http.bodies import READERS
from service.operations.answer import Answer
from service.operations.operation import Inputs, Outputs
from tests.service.http.test_bodies import BUDGET, GREY, manifest, pixels
from vaeserve.bundle.images import read_image


@given(arrays.arrays(np.float32, (2, 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_latents_survive_json_and_npy_to_the_bit(values):
    answer = Answer({"mean": values})
    said = json.loads(answers.as_json(answer, "some@1"))
    assert said["model"] == "some@1"
    np.testing.assert_array_equal(bodies.latents_from_list(said["mean"], GREY, BUDGET), values)
    np.testing.assert_array_equal(
        bodies.latents_from_npy(answers.as_npy(answer, "some@1"), GREY, BUDGET), values
    )


def test_float32_is_printed_as_short_as_it_is():
    assert answers.as_json(Answer({"mean": np.float32([[0.1]])}), "m@1") == b'{"model":"m@1","mean":[[0.1]]}'


@pytest.mark.parametrize("channels", [1, 3])
def test_images_out(channels):
    images = pixels(channels=channels, n=3)
    answer = Answer({"images": images, "error": np.float32([0, 1, 2])}, seed=7)
    said = json.loads(answers.as_json(answer, "some@1"))
    assert list(said) == ["model", "images", "error", "seed"]
    again = bodies.images_from_list(said["images"], manifest(channels=channels), BUDGET)
    np.testing.assert_array_equal(again, images)
    np.testing.assert_array_equal(np.load(io.BytesIO(answers.as_npy(answer, "some@1"))), images)
    with np.load(io.BytesIO(answers.as_npz(answer, "some@1"))) as archive:
        assert set(archive) == {"images", "error"}
        np.testing.assert_array_equal(archive["images"], images)
    assert Image.open(io.BytesIO(answers.as_png(answer, "some@1"))).size == (2 * 7 + 2, 2 * 6 + 2)
    assert Image.open(io.BytesIO(answers.as_jpeg(answer, "some@1"))).format == "JPEG"


def test_one_image_is_answered_bare():
    image = pixels(n=1)
    file = answers.as_png(Answer({"images": image}), "some@1")
    again = read_image(file, height=4, width=5, channels=1, fit="contain")
    np.testing.assert_array_equal(again, image[0])


def test_every_media_type_of_the_contract_is_in_a_table():
    images = {
        "application/json",
        "image/png",
        "image/jpeg",
        "image/webp",
        "image/gif",
        "image/bmp",
        "multipart/form-data",
        "application/x-npy",
    }
    arrays = {"application/json", "application/x-npy", "application/x-npz"}
    assert set(READERS[Inputs.IMAGES]) == set(READERS[Inputs.POINT]) == images
    assert set(READERS[Inputs.LATENTS]) == {"application/json", "application/x-npy"}
    assert set(answers.WRITERS[Outputs.ARRAYS]) == arrays
    assert set(answers.WRITERS[Outputs.PICTURES]) == arrays | {"image/png", "image/jpeg"}
