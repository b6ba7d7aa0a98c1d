"""The endpoints over a real socket, with real models; see conftest.py for what is loaded."""

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.arrays import NPY, npy
from vaeserve.bundle.images import encode_image
from vaeserve.bundle.noise import noise

JSON = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}


def from_npy(answer):
    return np.load(io.BytesIO(answer.content))


def from_image(data):
    array = np.asarray(Image.open(io.BytesIO(data)))
    return array[..., np.newaxis] if array.ndim == 2 else array


def text(image):
    return base64.b64encode(encode_image(image)).decode()


def problem(answer, status, slug):
    """The body of an answer that must be this problem."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert (answer.status_code, body["type"]) == (status, f"/problems/{slug}"), body
    assert body["status"] == status
    assert body["instance"] == answer.headers["x-request-id"]
    assert body["detail"].endswith(".")
    return body


# --- the four ---------------------------------------------------------------------------------------------


def test_encode_gives_the_mean_of_every_form_of_body(http, tiny, images):
    expected = tiny.encode(images).mean
    for body, headers in (
        ({"images": [text(image) for image in images]}, None),
        ({"images": images.tolist()}, None),
        ({"images": images[..., 0].tolist()}, None),
    ):
        answer = http.post("/encode", json=body, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-model"] == "tiny@2"
        assert answer.headers["vary"] == "Accept"
        assert "x-seed" not in answer.headers
        assert list(answer.json()) == ["model", "mean"]
        np.testing.assert_allclose(answer.json()["mean"], expected, atol=1e-5)
    answer = http.post("/encode", content=npy(images), headers=NPY | {"Accept": "application/x-npy"})
    np.testing.assert_allclose(from_npy(answer), expected, atol=1e-5)
    for image, mean in zip(images, expected, strict=True):
        answer = http.post("/encode", content=encode_image(image), headers=PNG)
        np.testing.assert_allclose(answer.json()["mean"], [mean], atol=1e-5)


def test_encode_returns_what_is_asked_for(http, tiny, images):
    posterior = tiny.encode(images)
    sample = posterior.mean + np.exp(posterior.logvar / 2) * noise(7, range(5), (4,))
    body = {"images": images.tolist(), "return": ["logvar", "sample"], "seed": 7}
    answer = http.post("/encode", json=body)
    assert list(answer.json()) == ["model", "logvar", "sample", "seed"]
    assert answer.json()["seed"] == 7
    assert answer.headers["x-seed"] == "7"
    np.testing.assert_allclose(answer.json()["logvar"], posterior.logvar, atol=1e-5)
    np.testing.assert_allclose(answer.json()["sample"], sample, atol=1e-5)
    for query in ("return=mean,logvar", "return=mean&return=logvar"):
        answer = http.post(
            f"/encode?{query}", content=npy(images), headers=NPY | {"Accept": "application/x-npz"}
        )
        with np.load(io.BytesIO(answer.content)) as archive:
            assert set(archive) == {"mean", "logvar"}
            np.testing.assert_allclose(archive["logvar"], posterior.logvar, atol=1e-5)


def test_a_sample_without_a_seed_can_be_drawn_again(http, images):
    body = {"images": images.tolist(), "return": ["sample"]}
    first = http.post("/encode", json=body)
    again = http.post("/encode", json=body | {"seed": first.json()["seed"]})
    assert first.json() == again.json()
    assert first.headers["x-seed"] == str(first.json()["seed"])
    assert http.post("/encode", json=body).json() != first.json()


def test_decode(http, tiny, images):
    latents = tiny.encode(images).mean
    expected = tiny.decode(latents)
    answer = http.post("/decode", json={"latents": latents.tolist()})
    assert list(answer.json()) == ["model", "images"]
    for image, data in zip(expected, answer.json()["images"], strict=True):
        np.testing.assert_array_equal(from_image(base64.b64decode(data)), image)
    answer = http.post("/decode", content=npy(latents), headers=NPY | {"Accept": "application/x-npy"})
    np.testing.assert_array_equal(from_npy(answer), expected)
    answer = http.post("/decode", json={"latents": latents[:1].tolist()}, headers={"Accept": "image/png"})
    np.testing.assert_array_equal(from_image(answer.content), expected[0])


def test_reconstruct(http, tiny, images):
    expected = tiny.decode(tiny.encode(images).mean)
    answer = http.post("/reconstruct", content=npy(images), headers=NPY)
    assert list(answer.json()) == ["model", "images", "error"]
    error = np.square(images / 255 - expected / 255).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(answer.json()["error"], error, rtol=1e-5)
    answer = http.post("/reconstruct", content=npy(images), headers=NPY | {"Accept": "application/x-npz"})
    with np.load(io.BytesIO(answer.content)) as archive:
        np.testing.assert_array_equal(archive["images"], expected)
        np.testing.assert_allclose(archive["error"], error, rtol=1e-5)


def test_sample_is_the_same_for_a_seed_whatever_n_and_method(http, tiny):
    one = http.get("/sample?seed=7", headers={"Accept": "application/x-npy"})
    assert one.headers["x-seed"] == "7"
    np.testing.assert_array_equal(from_npy(one), tiny.decode(noise(7, range(1), (4,))))
    many = http.get("/sample?seed=7&n=9", headers={"Accept": "application/x-npy"})
    np.testing.assert_array_equal(from_npy(many)[:1], from_npy(one))
    posted = http.post("/sample", json={"seed": 7, "n": 9}, headers={"Accept": "application/x-npy"})
    np.testing.assert_array_equal(from_npy(posted), from_npy(many))
    mixed = http.post("/sample?n=9", json={"seed": 7}, headers={"Accept": "application/x-npy"})
    np.testing.assert_array_equal(from_npy(mixed), from_npy(many))


def test_sample_returns_its_seed_and_its_latents(http, tiny):
    answer = http.get("/sample?n=2&return=latents&temperature=0.5")
    body = answer.json()
    assert list(body) == ["model", "images", "latents", "seed"]
    assert answer.headers["x-seed"] == str(body["seed"])
    np.testing.assert_allclose(body["latents"], noise(body["seed"], range(2), (4,)) / 2, rtol=1e-6)
    assert http.post("/sample").json()["seed"] != body["seed"]


def test_temperature_0_is_the_mean_image(http, tiny):
    answer = http.get("/sample?temperature=0&n=2", headers={"Accept": "application/x-npy"})
    np.testing.assert_array_equal(from_npy(answer), tiny.decode(np.zeros((2, 4), np.float32)))


def test_the_round_trip_of_the_readme(http):
    """What /sample paints can be posted as it is, and every step agrees with the others."""
    digit = http.get("/sample?n=1&seed=7", headers={"Accept": "image/png"}).content
    pixels = from_npy(http.get("/sample?n=1&seed=7", headers={"Accept": "application/x-npy"}))
    np.testing.assert_array_equal(from_image(digit), pixels[0])  # nothing was resampled
    mean = http.post("/encode", content=digit, headers=PNG).json()["mean"]
    assert mean == http.post("/encode", content=npy(pixels), headers=NPY).json()["mean"]
    decoded = http.post("/decode", json={"latents": mean}, headers={"Accept": "image/png"}).content
    again = http.post("/reconstruct", content=digit, headers=PNG | {"Accept": "image/png"}).content
    assert decoded == again


@pytest.mark.parametrize(("n", "size"), [(1, (8, 8)), (4, (22, 22)), (64, (82, 82))])
def test_one_image_is_bare_and_several_are_a_sheet(http, n, size):
    for kind in ("png", "jpeg"):
        answer = http.get(f"/sample?n={n}&seed=7", headers={"Accept": f"image/{kind}"})
        assert answer.headers["content-type"] == f"image/{kind}"
        assert Image.open(io.BytesIO(answer.content)).size == size


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_image_files_of_any_kind_mode_and_size(http, kind, mode):
    if kind == "jpeg" and mode in ("P", "1"):
        mode = "CMYK"
    file = io.BytesIO()
    Image.linear_gradient("L").resize((40, 24)).convert(mode).save(file, kind)
    for model in ("tiny", "colour"):
        answer = http.post(
            f"/models/{model}/encode", content=file.getvalue(), headers={"Content-Type": f"image/{kind}"}
        )
        assert answer.status_code == 200, answer.text


# --- models -----------------------------------------------------------------------------------------------


def test_one_endpoint_in_three_forms(http):
    expected = http.get("/sample?seed=1&n=3").json()
    assert expected["model"] == "tiny@2"
    for url in (
        "/sample?seed=1&n=3&model=tiny",
        "/sample?seed=1&n=3&model=tiny@2",
        "/models/tiny/sample?seed=1&n=3",
        "/models/tiny/versions/2/sample?seed=1&n=3",
        "/models/tiny/sample?seed=1&n=3&model=tiny@2",
    ):
        assert http.get(url).json() == expected
    assert http.post("/sample", json={"seed": 1, "n": 3, "model": "tiny"}).json() == expected
    assert http.get("/models/colour/sample").json()["model"] == "colour@1"


def test_a_body_names_the_model_whose_size_it_is_fitted_to(http):
    image = text(np.zeros((9, 9, 3), np.uint8))
    answer = http.post("/encode", json={"images": [image], "model": "colour"})
    assert np.shape(answer.json()["mean"]) == (1, 2, 3, 4)


def test_a_version_that_is_not_loaded_is_not_replaced_by_another(http):
    body = problem(
        http.post("/decode", json={"latents": [[0, 0, 0, 0]], "model": "tiny@1"}), 409, "wrong-model"
    )
    assert "tiny@2" in body["detail"]
    problem(http.get("/models/tiny/versions/9/sample"), 409, "wrong-model")


def test_models_that_contradict_each_other(http):
    problem(http.get("/models/tiny/sample?model=colour"), 409, "wrong-model")
    problem(http.get("/models/tiny/versions/2/sample?model=tiny@1"), 409, "wrong-model")
    problem(http.post("/sample?model=tiny", json={"model": "colour"}), 422, "invalid-request")


@pytest.mark.parametrize(
    "name", ["nothing", "tiny@", "tiny@x", "tiny@0", "@2", "..%2f..", "%00", "é", "a" * 500]
)
def test_a_model_that_is_not_there(http, name):
    answer = http.get(f"/models/{name}/sample")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    if name == "nothing":
        assert "colour, tiny" in problem(answer, 404, "unknown-model")["detail"]


def test_the_list_of_models(http):
    body = http.get("/models").json()
    assert body["refused"] == {}
    assert [(model["name"], model["versions"], model["default"]) for model in body["models"]] == [
        ("colour", [1], False),
        ("tiny", [2], True),
    ]
    assert body["models"][0]["image"]["channels"] == 3
    assert body["models"][0]["latent"] == [2, 3, 4]


def test_one_model(http):
    answer = http.get("/models/tiny")
    body = answer.json()
    assert answer.headers["x-model"] == body["model"] == "tiny@2"
    assert body["state"] == "ready"
    assert body["manifest"]["latent"]["shape"] == [4]
    assert body["limits"]["max_body"] == 2 << 20
    assert http.get("/models/tiny/versions/2").json() == body
    problem(http.get("/models/tiny/versions/1"), 409, "wrong-model")
    problem(http.get("/models/nothing"), 404, "unknown-model")


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("GET", "/sample/", 404, "not-found"),
        ("GET", "/static-offline-docs/nothing.js", 404, "not-found"),
        ("GET", "/problems/nothing", 404, "not-found"),
        ("GET", "/encode", 405, "method-not-allowed"),
        ("PUT", "/sample", 405, "method-not-allowed"),
        ("OPTIONS", "/decode", 405, "method-not-allowed"),
        ("DELETE", "/static-offline-docs/favicon.png", 405, "method-not-allowed"),
        ("POST", "/docs", 405, "method-not-allowed"),
        ("GET", "/sample?n=0", 422, "invalid-request"),
        ("GET", "/sample?n=x", 422, "invalid-request"),
        ("GET", "/sample?seed=-1", 422, "invalid-request"),
        ("GET", "/sample?seed=9007199254740992", 422, "invalid-request"),
        ("GET", "/sample?temperature=nan", 422, "invalid-request"),
        ("GET", "/sample?temperature=10.5", 422, "invalid-request"),
        ("GET", "/sample?return=images", 422, "invalid-request"),
        ("GET", "/sample?sede=7", 422, "invalid-request"),
        ("GET", f"/sample?model={'a' * 200}", 422, "invalid-request"),
        ("GET", "/sample?n=257", 413, "too-large"),
    ],
)
def test_requests_without_a_body_that_cannot_be_answered(http, method, path, status, slug):
    problem(http.request(method, path), status, slug)


def test_405_lists_every_method_of_the_path(http):
    answer = http.put("/sample")
    assert answer.headers["allow"] == "GET, POST"
    assert "GET, POST" in answer.json()["detail"]


def test_a_wrong_parameter_is_pointed_at(http):
    body = problem(http.get("/sample?n=0&sede=7"), 422, "invalid-request")
    assert [(error["location"], error["pointer"]) for error in body["errors"]] == [
        ("query", "/n"),
        ("query", "/sede"),
    ]


@pytest.mark.parametrize(
    ("path", "content", "media_type", "status", "slug", "pointer"),
    [
        ("/encode", b"{", "application/json", 422, "invalid-request", ""),
        ("/encode", b'{"images": []}', "application/json", 422, "invalid-request", "/images"),
        ("/encode", b'{"images": ["abcd"], "x": 1}', "application/json", 422, "invalid-request", "/x"),
        ("/encode", b'{"images": ["abcd"]}', "application/json", 422, "bad-image", "/images/0"),
        ("/encode", b'{"images": [[[1, 2]]]}', "application/json", 422, "wrong-shape", "/images/0"),
        ("/decode", b'{"latents": [[1, 2]]}', "application/json", 422, "wrong-shape", "/latents/0"),
        ("/decode", b'{"latents": [[1, NaN]]}', "application/json", 422, "invalid-request", "/latents/0/1"),
        ("/encode", b"hello", "image/png", 422, "bad-image", None),
        ("/encode", b"", "image/png", 422, "bad-image", None),
        ("/encode", b"hello", "application/x-npy", 422, "invalid-request", None),
        ("/encode", npy(np.zeros((1, 8, 9), np.uint8)), "application/x-npy", 422, "wrong-shape", None),
        ("/encode", npy(np.zeros((1, 8, 8))), "application/x-npy", 422, "wrong-shape", None),
        ("/encode", b"hello", "text/plain", 415, "unsupported-media-type", None),
        ("/encode", b"hello", "image/tiff", 415, "unsupported-media-type", None),
        ("/decode", b"hello", "image/png", 415, "unsupported-media-type", None),
        ("/sample", b"n=3", "application/x-www-form-urlencoded", 415, "unsupported-media-type", None),
        ("/sample", b'{"n": 257}', "application/json", 413, "too-large", None),
        ("/encode", bytes((2 << 20) + 1), "image/png", 413, "too-large", None),
        ("/encode", npy(np.zeros((257, 8, 8), np.uint8)), "application/x-npy", 413, "too-large", None),
        ("/encode", encode_image(np.zeros((1025, 1024, 1), np.uint8)), "image/png", 413, "too-large", None),
    ],
)  # fmt: skip
def test_bodies_that_cannot_be_read(http, path, content, media_type, status, slug, pointer):
    answer = http.post(path, content=content, headers={"Content-Type": media_type})
    body = problem(answer, status, slug)
    if pointer is None:
        assert "errors" not in body
    else:
        assert [error["pointer"] for error in body["errors"]] == [pointer]


def test_a_body_without_a_length_is_counted_while_it_comes(http):
    def chunks():
        for _ in range(40):
            yield bytes(64 << 10)

    problem(http.post("/encode", content=chunks(), headers=PNG), 413, "too-large")


def test_all_images_of_a_request_together_are_limited(http):
    almost = base64.b64encode(encode_image(np.zeros((1024, 1000, 1), np.uint8))).decode()
    assert http.post("/encode", json={"images": [almost] * 4}).status_code == 200
    body = problem(http.post("/encode", json={"images": [almost] * 5}), 413, "too-large")
    assert "together" in body["detail"]


def test_what_cannot_be_made_is_refused_before_anything_is_read(http):
    body = problem(
        http.post("/encode", content=b"hello", headers=PNG | {"Accept": "image/png"}), 406, "not-acceptable"
    )
    assert "application/x-npz" in body["detail"]
    assert "image/png" not in body["detail"]


def test_images_by_quality_as_a_browser_asks(http):
    accept = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
    assert http.get("/sample", headers={"Accept": accept}).headers["content-type"] == "image/png"


# --- the rest ---------------------------------------------------------------------------------------------


def test_health_and_readiness(http):
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.head("/healthz").status_code == http.head("/readyz").status_code == 200
    assert http.get("/readyz").json() == {"status": "ready", "models": ["colour@1", "tiny@2"]}


def test_every_answer_has_an_id_and_its_times(http):
    for answer in (http.get("/sample"), http.get("/nothing"), http.get("/healthz"), http.get("/docs")):
        assert len(answer.headers["x-request-id"]) == 16
        assert "total;dur=" in answer.headers["server-timing"]
    answer = http.post("/encode", json={"images": [[[0] * 8] * 8]}, headers={"X-Request-ID": "me-1"})
    assert answer.headers["x-request-id"] == "me-1"
    steps = [step.split(";")[0] for step in answer.headers["server-timing"].split(", ")]
    assert steps == ["read", "queue", "model", "write", "total"]


def test_the_page_behind_every_problem(http):
    answer = http.get("/sample?n=0")
    page = http.get(answer.json()["type"])
    assert page.status_code == 200
    assert "status 422" in page.text


def test_docs_need_no_other_host(http):
    page = http.get("/docs").text
    assert "//cdn" not in page
    for path in ("/static-offline-docs/swagger-ui-bundle.js", "/static-offline-docs/swagger-ui.css"):
        assert path in page
        assert http.get(path).status_code == 200


def test_concurrent_requests_get_their_own_answers(service_url, tiny):
    """Many clients at once, of mixed routes and sizes: each gets the answer that it would get alone."""
    from concurrent.futures import ThreadPoolExecutor

    rng = np.random.default_rng(1)
    jobs = [rng.integers(0, 256, (int(n), 8, 8, 1), dtype=np.uint8) for n in rng.integers(1, 150, 60)]

    def call(job):
        images, client = job
        answer = client.post("/encode", content=npy(images), headers=NPY | {"Accept": "application/x-npy"})
        mean = from_npy(answer)
        again = client.post("/decode", content=npy(mean), headers=NPY | {"Accept": "application/x-npy"})
        return images, mean, from_npy(again)

    with httpx.Client(base_url=service_url) as client, ThreadPoolExecutor(8) as pool:
        for images, mean, again in pool.map(call, [(images, client) for images in jobs]):
            np.testing.assert_allclose(mean, tiny.encode(images).mean, atol=1e-5)
            np.testing.assert_allclose(again.astype(int), tiny.decode(mean), atol=1)
