"""POST /interpolate: the frames lie on the way, as a strip or an animation."""

import io

import numpy as np
from PIL import Image, ImageSequence

from service.operations.interpolate import lerp, slerp
from tests.arrays import AS_NPY, AS_NPZ, NPY, from_npz, npy, refused
from vaeserve.bundle.images import encode_image


def test_an_arc_keeps_its_distance_and_a_line_does_not():
    rng = np.random.default_rng(0)
    start, end = rng.standard_normal((2, 2, 3)).astype(np.float32)
    steps = np.linspace(0, 1, 5)
    arc = slerp(start, end, steps)
    lengths = np.linalg.norm(arc.reshape(5, -1), axis=1)
    np.testing.assert_allclose(lengths, np.linspace(lengths[0], lengths[-1], 5), rtol=1e-5)
    np.testing.assert_allclose(arc[[0, -1]], [start, end], atol=1e-6)
    np.testing.assert_allclose(lerp(start, end, steps)[2], (start + end) / 2, atol=1e-6)
    for other in (-start, 2 * start, np.zeros_like(start)):  # there is no arc
        np.testing.assert_allclose(slerp(start, other, steps), lerp(start, other, steps), atol=1e-6)


def test_interpolate_goes_from_one_image_to_the_other(http, tiny, images):
    sent = {"content": npy(images[:2]), "headers": NPY | AS_NPZ}
    found = from_npz(http.post("/interpolate?n=5&return=latents", **sent))
    mean = tiny.encode(images[:2]).mean
    expected = slerp(mean[0], mean[1], np.linspace(0, 1, 5))
    np.testing.assert_allclose(found["latents"], expected, atol=1e-5)
    np.testing.assert_array_equal(found["images"], tiny.decode(found["latents"]))
    line = from_npz(http.post("/interpolate?n=3&method=lerp&return=latents", **sent))["latents"]
    np.testing.assert_allclose(line[1], mean.mean(axis=0), atol=1e-5)
    body = {"images": images[:1].tolist(), "latents": mean[1:].tolist(), "n": 5, "return": ["latents"]}
    np.testing.assert_allclose(http.post("/interpolate", json=body).json()["latents"], expected, atol=1e-4)


def test_interpolate_is_a_strip_or_an_animation(http, images):
    files = [("images", encode_image(image)) for image in images[:2]]
    strip = http.post("/interpolate", files=files, headers={"Accept": "image/png"})
    assert Image.open(io.BytesIO(strip.content)).size == (9 * 10 + 2, 12)
    frames = http.post("/interpolate", files=files, headers=AS_NPY)
    expected = np.load(io.BytesIO(frames.content))
    for media_type in ("image/gif", "image/webp"):
        answer = http.post(
            "/interpolate?duration=50", files=files, headers={"Accept": media_type, "X-Request-ID": "a"}
        )
        assert answer.headers["content-type"] == media_type
        animation = Image.open(io.BytesIO(answer.content))
        assert animation.info["loop"] == 0
        shown = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(animation)]
        np.testing.assert_allclose(np.stack(shown), expected[..., 0], atol=1)


def test_the_number_of_frames_is_limited(http):
    latents = {"latents": [[0, 0, 0, 0], [1, 1, 1, 1]]}
    refused(http.post("/interpolate?n=257", json=latents), 413, "n = 257 is more than the 256")
