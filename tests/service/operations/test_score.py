"""POST /score over a real socket: the figures are those of their definitions, and errors say what to do."""

import base64
import io

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
