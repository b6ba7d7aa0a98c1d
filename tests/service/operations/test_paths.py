"""/interpolate, /traverse and /arithmetic over a real socket, and the truncation and caching of /sample."""

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence
from service.operations.paths import lerp, slerp

from vaeserve.bundle.images import encode_image
from vaeserve.bundle.repository import open_engine

NPY = {"Content-Type": "application/x-npy"}
AS_NPY = {"Accept": "application/x-npy"}
AS_NPZ = {"Accept": "application/x-npz"}


@pytest.fixture(scope="module")
def tiny(repository):
    return open_engine(repository / "tiny/2")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def from_npz(answer):
    assert answer.status_code == 200, answer.text
    with np.load(io.BytesIO(answer.content)) as archive:
        return dict(archive)


def refused(answer, status, words):
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]


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
        "/traverse?top=2&n=5", content=encode_image(images[0]), headers={"Content-Type": "image/png"} | PNG
    )
    assert Image.open(io.BytesIO(answer.content)).size == (5 * 10 + 2, 2 * 10 + 2)


PNG = {"Accept": "image/png"}


def test_arithmetic_decodes_the_weighted_sum(http, tiny, images):
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


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (
            "/interpolate",
            {"latents": [[0, 0, 0, 0]]},
            "has 1 points, images and latents together; this takes 2",
        ),
        ("/interpolate", {}, "has 0 points"),
        ("/traverse", {"latents": [[0, 0, 0, 0]] * 2}, "this takes at most 1"),
        ("/traverse", {"dimensions": [4]}, "has the dimensions 0 to 3"),
        ("/arithmetic", {}, "this takes 1 or more"),
        ("/arithmetic", {"latents": [[0, 0, 0, 0]], "weights": [1, 2]}, "give one for each"),
        ("/arithmetic", {"latents": [[1e30, 0, 0, 0]], "weights": [1e30]}, "not finite"),
        ("/similarity", {"latents": [[0, 0, 0, 0]]}, "this takes 2 or more"),
        ("/similarity", {"latents": [[0, 0, 0, 0]] * 2, "top": 2}, "each has 1 others"),
        ("/similarity", {"latents": [[0, 0, 0, 0]] * 2, "metric": "symmetric_kl"}, "send images"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_do(http, path, body, words):
    refused(http.post(path, json=body), 422, words)


def test_limits_hold_for_what_is_decoded_too(http):
    latents = {"latents": [[0, 0, 0, 0], [1, 1, 1, 1]]}
    refused(http.post("/interpolate?n=257", json=latents), 413, "n = 257 is more than the 256")
    refused(http.post("/traverse?n=64&dimensions=0,1,2,3,0", json={}), 413, "dimensions × n = 320")


def test_truncation_cuts_the_noise_and_keeps_its_order(http, tiny):
    whole, cut = (
        http.get(f"/sample?n=64&seed=7&return=latents{option}").json()["latents"]
        for option in ("", "&truncation=0.5")
    )
    whole, cut = np.array(whole), np.array(cut)
    assert np.abs(cut).max() <= 0.5
    assert np.abs(whole).max() > 0.5
    np.testing.assert_array_equal(np.argsort(whole, axis=None), np.argsort(cut, axis=None))
    one = http.get("/sample?seed=7&return=latents&truncation=0.5").json()["latents"]
    np.testing.assert_array_equal(one[0], cut[0])


def test_a_seeded_sample_can_be_kept(http):
    answer = http.get("/sample?seed=7", headers=PNG)
    assert answer.headers["cache-control"] == "no-cache"
    known = {"If-None-Match": answer.headers["etag"]}
    again = http.get("/sample?seed=7", headers=PNG | known)
    assert (again.status_code, again.content) == (304, b"")
    assert "immutable" in http.get("/sample?seed=7&model=tiny@2").headers["cache-control"]
    assert "immutable" in http.get("/models/tiny/versions/2/sample?seed=7").headers["cache-control"]
    for other in ("seed=8", "seed=7&n=2", "seed=7&truncation=1", "seed=7&model=colour"):
        assert http.get(f"/sample?{other}", headers=PNG | known).status_code == 200
    assert http.get("/sample?seed=7", headers=known).status_code == 200  # as JSON
    assert "etag" not in http.get("/sample").headers
    assert "etag" not in http.post("/sample?seed=7").headers


def test_encode_tells_what_each_dimension_carries(http, tiny, images):
    body = http.post("/encode?return=kl,active", content=npy(images), headers=NPY).json()
    posterior = tiny.encode(images)
    expected = 0.5 * (posterior.mean**2 + np.exp(posterior.logvar) - 1 - posterior.logvar)
    np.testing.assert_allclose(body["kl"], expected, rtol=1e-4)
    assert body["active"] == [each > 0.01 for each in tiny.manifest.latent.kl]
