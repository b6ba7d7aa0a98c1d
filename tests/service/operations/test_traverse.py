"""POST /traverse: a grid, each row of which changes one dimension."""

import io

import numpy as np
from PIL import Image

from tests.arrays import AS_NPZ, AS_PNG, NPY, from_npz, npy, refused
from vaeserve.bundle.images import encode_image


def test_traverse_changes_one_dimension_in_each_row(http, tiny, images):
    found = from_npz(
        http.post("/traverse?dimensions=2,0&n=3&extent=2", content=npy(images[:1]), headers=NPY | AS_NPZ)
    )
    assert found["dimensions"].tolist() == [2, 0]
    assert found["values"].tolist() == [-2, 0, 2]
    latents = np.repeat(tiny.encode(images[:1]).mean, 6, axis=0)
    latents[:3, 2] = latents[3:, 0] = found["values"]
    np.testing.assert_array_equal(found["images"], tiny.decode(latents))
    highest = from_npz(http.post("/traverse?top=2&n=2", json={}, headers=AS_NPZ))
    assert highest["dimensions"].tolist() == np.argsort(tiny.manifest.latent.kl)[::-1][:2].tolist()
    answer = http.post(
        "/traverse?top=2&n=5",
        content=encode_image(images[0]),
        headers={"Content-Type": "image/png"} | AS_PNG,
    )
    assert Image.open(io.BytesIO(answer.content)).size == (5 * 10 + 2, 2 * 10 + 2)


def test_the_number_of_images_is_limited(http):
    refused(http.post("/traverse?n=64&dimensions=0,1,2,3,0", json={}), 413, "dimensions × n = 320")
