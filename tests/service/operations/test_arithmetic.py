"""POST /arithmetic: the weighted sum of the points, decoded."""

import numpy as np

from tests.arrays import AS_NPZ, NPY, from_npz, npy
from vaeserve.bundle.images import encode_image


def test_arithmetic_decodes_the_weighted_sum(http, tiny, images):
    images = images[:3]
    mean = tiny.encode(images).mean
    sent = {"content": npy(images), "headers": NPY | AS_NPZ}
    found = from_npz(http.post("/arithmetic?weights=1,-1,1", **sent))
    np.testing.assert_allclose(found["latents"], [mean[0] - mean[1] + mean[2]], atol=1e-5)
    np.testing.assert_array_equal(found["images"], tiny.decode(found["latents"]))
    average = from_npz(http.post("/arithmetic", content=npy(mean), headers=NPY | AS_NPZ))
    np.testing.assert_allclose(average["latents"], [mean.mean(axis=0)], atol=1e-5)
    files = [("images", encode_image(image)) for image in images]
    form = http.post("/arithmetic", files=files, data={"weights": ["1", "-1", "1"]}, headers=AS_NPZ)
    np.testing.assert_allclose(from_npz(form)["latents"], found["latents"], atol=1e-5)
