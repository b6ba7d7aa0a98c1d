"""POST /score over a real socket: the figures are those of their definitions, and errors say what to do."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from tests.arrays import NPY, npy


def test_the_terms_are_those_of_the_elbo(http, tiny, images):
    answer = http.post("/score", json={"images": images.tolist(), "seed": 7})
    body = answer.json()
    assert (body["model"], body["seed"], answer.headers["x-seed"]) == ("tiny@2", 7, "7")
    posterior = tiny.encode(images)
    distortion = -tiny.manifest.likelihood.log_prob(images, tiny.pixels(posterior.sample(7)))
    rate = posterior.kl().sum(axis=1)
    mean = posterior.mean
    np.testing.assert_allclose(body["distortion"], distortion, rtol=1e-4)
    np.testing.assert_allclose(body["rate"], rate, rtol=1e-4)
    np.testing.assert_allclose(body["elbo"], -(distortion + rate), rtol=1e-4)
    np.testing.assert_allclose(body["log_prior"], -0.5 * (mean**2 + np.log(2 * np.pi)).sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(
        body["error"], http.post("/reconstruct", json={"images": images.tolist()}).json()["error"], rtol=1e-6
    )
    assert "iwae" not in body


def test_p_values_are_ranks_among_the_held_out_images(http, tiny, images):
    body = http.post("/score", json={"images": images.tolist(), "seed": 7, "false_positive_rate": 0.3}).json()
    for name, low in (("elbo", True), ("distortion", False), ("rate", False), ("error", False)):
        held_out = getattr(tiny.calibration, name)
        as_unusual = [sum(held_out <= v if low else held_out >= v) for v in np.float32(body[name])]
        np.testing.assert_allclose(body[f"p_{name}"], (1 + np.array(as_unusual)) / 41, rtol=1e-6)
    assert body["is_anomaly"] == [p <= 0.3 for p in body["p_value"]]
    assert body["false_positive_rate"] == 0.3
    # An image unlike all: the smallest p-value that 40 images can give.
    black = http.post("/score?seed=7", json={"images": np.zeros((1, 8, 8), int).tolist()}).json()
    assert black["p_value"] == pytest.approx([1 / 41])
    assert black["is_anomaly"] == [True]
    assert "note" not in black


def test_where_no_p_value_is_small_enough_nothing_is_called_an_anomaly_or_normal(http, images):
    """The 40 images of the calibration give p-values from 1/41."""
    body = http.post("/score?false_positive_rate=0.02", content=npy(images), headers=NPY).json()
    assert body["is_anomaly"] is None
    assert "calibrated on 40 images, so no p-value is below 0.024" in body["note"]
    enough = http.post("/score?false_positive_rate=0.025", content=npy(images), headers=NPY).json()
    assert len(enough["is_anomaly"]) == len(images)
    answer = http.post(
        "/score?false_positive_rate=0.02",
        content=npy(images),
        headers=NPY | {"accept": "application/x-npz"},
    )
    assert "is_anomaly" not in np.load(io.BytesIO(answer.content)).files


def test_the_bound_rises_from_the_elbo(http, images):
    sent = {"content": npy(images), "headers": NPY}
    one, many = (http.post(f"/score?k={k}&seed=3", **sent).json() for k in (1, 200))
    again = http.post("/score?k=200&seed=3", **sent).json()
    assert many["iwae"] == again["iwae"]
    assert (np.array(many["iwae"]) > np.array(one["iwae"]) - 1e-3).mean() >= 0.8
    assert np.mean(many["iwae"]) > np.mean(many["elbo"])


def test_the_error_map_shows_where_it_is_off(http, tiny, images):
    again = tiny.decode(tiny.encode(images).mean)
    expected = np.abs(images.astype(int) - again)
    body = http.post("/score?return=images,error_map", content=npy(images), headers=NPY).json()
    for index, (image, error_map) in enumerate(zip(body["images"], body["error_map"], strict=True)):
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))), again[index, :, :, 0]
        )
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(base64.b64decode(error_map)))), expected[index, :, :, 0]
        )
    answer = http.post("/score", content=npy(images[:1]), headers=NPY | {"Accept": "image/png"})
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), expected[0, :, :, 0])


def test_arrays_are_those_of_the_json(http, images):
    sent = {"content": npy(images), "params": {"seed": 7}}
    body = http.post("/score", headers=NPY, **sent).json()
    answer = http.post("/score", headers=NPY | {"Accept": "application/x-npz"}, **sent)
    with np.load(io.BytesIO(answer.content)) as archive:
        assert set(archive) == set(body) - {"model", "seed", "false_positive_rate"}
        np.testing.assert_allclose(archive["p_value"], body["p_value"], rtol=1e-6)
    answer = http.post("/score", headers=NPY | {"Accept": "application/x-npy"}, **sent)
    np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), body["elbo"], rtol=1e-6)


def test_what_a_model_lacks_is_left_out_or_refused(plain, images):
    body = {"images": images.tolist()}
    scored = plain.post("/score?model=plain", json=body).json()
    assert "elbo" in scored
    assert not {"p_value", "is_anomaly", "false_positive_rate"} & set(scored)
    for path, what in (
        ("/score?model=plain&false_positive_rate=0.1", "has no calibration"),
        ("/score?model=bare", "has no likelihood"),
        ("/traverse?model=plain", "how much each dimension is used"),
        ("/encode?model=plain&return=active", "how much each dimension is used"),
    ):
        answer = plain.post(path, json={"images": body["images"][:1]})
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/wrong-model"), answer.text
        assert what in answer.json()["detail"]


def test_too_many_samples_are_refused(http, images):
    answer = http.post("/score?k=1000", content=npy(images), headers=NPY)
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")


def test_the_noise_of_an_image_is_that_of_its_row_in_any_request(http, tiny, images):
    """In pieces, with `first`, the figures are those of one request; without, an image has other noise."""

    def score(first, stop, query):
        sent = {"content": npy(images[first:stop]), "headers": NPY}
        return http.post(f"/score?seed=7&k=3{query}", **sent).json()

    whole, tail, other = score(0, 5, ""), score(3, 5, "&first=3"), score(3, 5, "")
    for name in ("elbo", "distortion", "iwae"):
        np.testing.assert_allclose(tail[name], whole[name][3:], rtol=1e-4)
        assert not np.allclose(other[name], tail[name], rtol=1e-4)


def colour_images(n, height=12, width=10):
    return np.random.default_rng(5).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def as_file(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_the_local_score_and_its_place_are_answered(http, colour):
    images = colour_images(3)
    pictures = colour.decode(colour.encode(images).mean)
    usual = colour.calibration.usual
    body = http.post("/score?model=colour", content=npy(images), headers=NPY).json()
    np.testing.assert_allclose(body["local"], usual.local(images, pictures), rtol=1e-5)
    assert len(body["p_local"]) == len(body["where"]) == 3
    for found, (left, top, right, bottom) in zip(usual.map(images, pictures), body["where"], strict=True):
        row, column = np.unravel_index(found.argmax(), found.shape)
        assert left <= column < right
        assert top <= row < bottom


def test_the_place_is_in_pixels_of_the_image_that_was_sent(http, colour):
    """Five times as large, the same place is five times as far away; a file among arrays has its own size."""
    image = colour_images(1)[0]
    large = np.repeat(np.repeat(image, 5, axis=0), 5, axis=1)
    sent = [base64.b64encode(as_file(each)).decode() for each in (image, large)]
    body = http.post("/score", json={"model": "colour", "images": [*sent, image.tolist()]}).json()
    small, scaled, array = body["where"]
    assert small == array
    assert np.abs(np.array(scaled) - 5 * np.array(small)).max() <= 5
    form = [("images", ("a.png", as_file(each), "image/png")) for each in (image, large)]
    assert http.post("/score?model=colour", files=form).json()["where"] == [small, scaled]


def test_the_picture_is_as_large_as_the_file(http):
    sent = {"headers": {"accept": "image/png", "content-type": "image/png"}, "params": {"model": "colour"}}
    for pixels in (colour_images(1, 60, 50)[0], colour_images(1, 30, 90)[0]):
        answer = http.post("/score", content=as_file(pixels), **sent)
        picture = Image.open(io.BytesIO(answer.content))
        assert (picture.mode, picture.size) == ("RGB", pixels.shape[1::-1])
    several = http.post(
        "/score?model=colour", content=npy(colour_images(4)), headers=NPY | {"accept": "image/png"}
    )
    assert Image.open(io.BytesIO(several.content)).size == (2 * 12 + 2, 2 * 14 + 2)


def test_a_model_without_a_local_score_answers_the_others(http, images):
    body = http.post("/score", content=npy(images), headers=NPY).json()
    assert not {"local", "p_local", "where"} & set(body)
    assert "p_value" in body


def test_anomalies_are_counted_by_model(http):
    def counted(name):
        found = re.search(
            rf'^{name}{{model="colour",version="1"}} (.*)$', http.get("/metrics").text, re.MULTILINE
        )
        return float(found[1]) if found else 0.0

    names = ("vae_scored_total", "vae_anomalies_total")
    before = {name: counted(name) for name in names}
    sent = {"content": npy(colour_images(6)), "headers": NPY}
    found = http.post("/score?model=colour&false_positive_rate=0.5", **sent).json()["is_anomaly"]
    assert {True, False} == set(found)
    assert {name: counted(name) - before[name] for name in names} == dict(
        zip(names, (6, sum(found)), strict=True)
    )
