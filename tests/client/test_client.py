"""The client against a live service, and against refusals and faults of a service or a proxy."""

import io
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.client.commands import png
from vaeserve import Client
from vaeserve.client import client as module
from vaeserve.client.errors import BadRequest, Overloaded, ServerFault, Unreachable
from vaeserve.client.png import png as as_png

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)


def test_encode_gives_the_same_latents_for_paths_bytes_and_arrays(client, tmp_path):
    paths = []
    for index, image in enumerate(IMAGES):
        paths.append(tmp_path / f"{index}.png")
        paths[-1].write_bytes(png(image))
    from_arrays = client.encode(IMAGES)
    assert from_arrays.model == "tiny@1"
    assert from_arrays.mean.shape == from_arrays.logvar.shape == (5, 4)
    assert from_arrays.mean.dtype == np.float32
    for images in (
        paths,
        [str(path) for path in paths],
        [png(image) for image in IMAGES],
        list(IMAGES),
        IMAGES[..., 0],
    ):
        np.testing.assert_allclose(client.encode(images).mean, from_arrays.mean, atol=1e-5)
    np.testing.assert_allclose(client.encode(paths[2]).mean, from_arrays.mean[2:3], atol=1e-5)


def test_decode_and_reconstruct_agree(client):
    decoded = client.decode(client.encode(IMAGES).mean)
    again = client.reconstruct(IMAGES)
    assert decoded.dtype == np.uint8
    assert decoded.shape == IMAGES.shape
    np.testing.assert_array_equal(again.images, decoded)
    np.testing.assert_allclose(
        again.error, np.square(decoded / 255.0 - IMAGES / 255.0).mean(axis=(1, 2, 3)), atol=2e-3
    )


def test_the_same_seed_gives_the_same_samples(client):
    first = client.sample(3)
    np.testing.assert_array_equal(client.sample(3, seed=first.seed).images, first.images)
    np.testing.assert_array_equal(client.sample(2, seed=first.seed).images, first.images[:2])
    assert (
        client.sample(3, seed=first.seed, temperature=0).images == client.sample(1, temperature=0).images
    ).all()


def test_many_images_are_sent_in_several_requests_and_returned_in_order(client, monkeypatch):
    whole = client.encode(IMAGES).mean
    monkeypatch.setattr(module, "ROWS", 2)
    np.testing.assert_allclose(client.encode(IMAGES).mean, whole, atol=1e-5)
    np.testing.assert_array_equal(client.decode(whole), client.decode(whole[:5]))
    assert client.decode(whole).shape == IMAGES.shape


def test_the_model_can_be_chosen(service):
    with Client(service, model="colour@1") as client:
        samples = client.sample(2, seed=1)
        assert samples.model == "colour@1"
        assert samples.images.shape == (2, 8, 8, 3)
        assert client.encode(samples.images).mean.shape == (2, 2, 3)


def test_picture_returns_a_png(client):
    one = client.picture("/sample", None, n=1, seed=7)
    assert Image.open(io.BytesIO(one)).size == (8, 8)
    sheet = client.picture("/decode", latents=np.zeros((4, 4)))
    assert Image.open(io.BytesIO(sheet)).size == (22, 22)
    assert client.picture("/traverse", top=2, n=3).startswith(b"\x89PNG")  # a POST without a point


def test_models_lists_the_loaded_models(client):
    assert {model["name"] for model in client.models()["models"]} == {"tiny", "colour"}


@pytest.mark.parametrize(("model", "channels"), [("tiny", 1), ("colour", 3)])
@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_png_makes_the_same_pictures_as_the_service(service, model, channels, n):
    with Client(service, model=model) as client:
        theirs = client.picture("/sample", n=n, seed=7)
        ours = as_png(client.sample(n, seed=7).images)
        for picture in (theirs, ours):
            with Image.open(io.BytesIO(picture)) as image:
                assert image.mode == ("L" if channels == 1 else "RGB")
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(ours))), np.asarray(Image.open(io.BytesIO(theirs)))
        )


def test_a_refusal_raises_an_error_with_its_detail(client):
    with pytest.raises(BadRequest) as caught:
        client.encode(b"\x89PNG but not really")
    assert (caught.value.status, caught.value.slug) == (422, "bad-image")
    assert caught.value.request_id in str(caught.value)
    with pytest.raises(BadRequest, match="wrong-shape"):
        client.decode(np.zeros((1, 9)))


@pytest.mark.parametrize(
    ("images", "error"),
    [
        ([], "images is empty"),
        (np.zeros((2, 8, 8, 1)), "must be uint8"),
        (np.zeros((8, 8), np.uint8), r"must be uint8 \[n, h, w, c\]"),
    ],
)
def test_wrong_arrays_are_refused_before_they_are_sent(client, images, error):
    with pytest.raises(ValueError, match=error):
        client.encode(images)


def answering(service, refuse):
    """A client behind a proxy that refuses some requests, and a list of the requests that passed."""
    seen = []

    def pass_on(request):
        content = request.read()
        if refusal := refuse(request, content):
            status, slug = refusal
            return httpx.Response(
                status, json={"type": f"/problems/{slug}", "detail": "No.", "status": status}
            )
        seen.append((request.headers.get("Content-Type", "").partition(";")[0], len(content)))
        with httpx.Client() as onward:
            answer = onward.request(
                request.method, request.url, headers=request.headers, content=content or None
            )
        return httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)

    return Client(service, transport=httpx.MockTransport(pass_on)), seen


def test_several_files_are_sent_as_a_form(service, client):
    recorded, seen = answering(service, lambda request, content: None)
    found = recorded.encode([png(image) for image in IMAGES])
    np.testing.assert_allclose(found.mean, client.encode(IMAGES).mean, atol=1e-5)
    assert [kind for kind, _ in seen] == ["multipart/form-data"]


@pytest.mark.parametrize("kind", ["files", "arrays"])
def test_bodies_that_are_too_large_are_split(service, client, kind):
    images = [png(image) for image in IMAGES] if kind == "files" else IMAGES
    limit = 500 if kind == "files" else 300  # bytes: two images
    picky, seen = answering(
        service, lambda request, content: (413, "too-large") if len(content) > limit else None
    )
    np.testing.assert_allclose(picky.encode(images).mean, client.encode(IMAGES).mean, atol=1e-5)
    assert len(seen) >= 3
    assert max(size for _, size in seen) <= limit
    nothing, _ = answering(service, lambda request, content: (413, "too-large"))
    with pytest.raises(BadRequest, match="too-large"):
        nothing.encode(images)


def test_more_images_than_the_service_takes_in_one_request(service, client):
    many = np.tile(IMAGES, (120, 1, 1, 1))  # more than the 256 of a request
    assert client.encode(many).mean.shape == (600, 4)
    assert client.decode(np.zeros((600, 4))).shape == (600, 8, 8, 1)


def test_arrays_and_files_in_one_call_are_refused(client):
    with pytest.raises(TypeError, match="a mixture of arrays and files"):
        client.encode([IMAGES[0], png(IMAGES[1])])
    with pytest.raises(ValueError, match="latents are"):
        client.decode(np.zeros(4))


def scripted(*answers):
    """A client whose service gives these answers in turn, the pauses it made, and the answers left."""
    left, pauses = list(answers), []

    def answer(request):
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    transport = httpx.MockTransport(answer)
    return Client("http://service", transport=transport, sleep=pauses.append, retries=3), pauses, left


def good():
    file = io.BytesIO()
    np.savez(file, images=IMAGES)
    return httpx.Response(200, content=file.getvalue(), headers={"X-Seed": "1", "X-Model": "tiny@1"})


def test_the_client_waits_for_the_retry_after_of_an_overloaded_service():
    client, pauses, _ = scripted(
        httpx.Response(429, headers={"Retry-After": "7"}), httpx.Response(503), good()
    )
    assert client.sample(5).seed == 1
    assert 7 <= pauses[0] <= 7.5
    assert 0.5 <= pauses[1] <= 1.0


def test_retry_after_may_be_a_date_and_nonsense_is_ignored():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    answers = [httpx.Response(429, headers={"Retry-After": value}) for value in (soon, "soon", "-5")]
    client, pauses, _ = scripted(*answers, good())
    client.sample(5)
    assert 17 <= pauses[0] <= 20.5
    assert all(pause <= 2 for pause in pauses[1:])


def test_a_broken_connection_is_retried():
    client, pauses, _ = scripted(httpx.ConnectError("refused"), httpx.ReadError("reset"), good())
    assert client.sample(5).images.shape == IMAGES.shape
    assert len(pauses) == 2


def test_retries_are_limited_and_end_with_the_last_error():
    client, pauses, _ = scripted(*[httpx.Response(503, headers={"Retry-After": "9999"})] * 4)
    with pytest.raises(Overloaded):
        client.sample()
    assert len(pauses) == 3
    assert max(pauses) <= 61  # no service may send a client to sleep for hours
    client, _, _ = scripted(*[httpx.ConnectError("refused")] * 4)
    with pytest.raises(Unreachable, match="no answer from http://service"):
        client.sample()


def test_a_500_is_not_retried():
    client, pauses, left = scripted(httpx.Response(500, text="<html>proxy</html>"), good())
    with pytest.raises(ServerFault, match="proxy") as caught:
        client.sample()
    assert caught.value.status == 500
    assert (pauses, len(left)) == ([], 1)


def test_a_change_of_model_during_a_call_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 2)
    file = io.BytesIO()
    np.savez(file, mean=np.zeros((2, 4), np.float32), logvar=np.zeros((2, 4), np.float32))
    answers = [httpx.Response(200, content=file.getvalue(), headers={"X-Model": f"tiny@{v}"}) for v in (1, 2)]
    client, _, _ = scripted(*answers)
    with pytest.raises(Unreachable, match="tiny@1, tiny@2"):
        client.encode(IMAGES[:4])


def test_the_api_key_is_sent():
    seen = []

    def answer(request):
        seen.append(request.headers["Authorization"])
        return httpx.Response(200, json={"models": []})

    Client("http://service", api_key="secret", transport=httpx.MockTransport(answer)).models()
    assert seen == ["Bearer secret"]


# --- latent space -----------------------------------------------------------------------------------------


def test_score_takes_any_number_of_images(client):
    found = client.score(IMAGES, k=2, seed=7)
    np.testing.assert_allclose(found.elbo, -(found.distortion + found.rate), rtol=1e-5)
    assert (len(found.p_value), len(found.iwae)) == (5, 5)
    assert set(found.p_values) == {"value", "elbo", "distortion", "rate", "prior", "error"}
    again = client.score(IMAGES, k=2, seed=found.seed)
    np.testing.assert_array_equal(again.iwae, found.iwae)
    many = client.score(np.repeat(IMAGES, 30, axis=0))  # in two requests
    assert len(many.elbo) == 150
    assert many.iwae is None


def test_latent_methods_take_images_and_latents(client):
    mean = client.encode(IMAGES[:2]).mean
    frames = client.interpolate(IMAGES[:2], n=5)
    np.testing.assert_array_equal(frames, client.interpolate(latents=mean, n=5))
    np.testing.assert_array_equal(frames[[0, -1]], client.decode(mean))
    moved = client.traverse(latents=mean[:1], dimensions=[2, 0], n=3, extent=1)
    assert moved.images.shape == (2, 3, 8, 8, 1)
    assert (moved.dimensions.tolist(), moved.values.tolist()) == ([2, 0], [-1, 0, 1])
    assert client.traverse(top=1, n=2).images.shape == (1, 2, 8, 8, 1)
    total = client.arithmetic(latents=mean, weights=[2, -1])
    np.testing.assert_allclose(total.latents, 2 * mean[0] - mean[1], atol=1e-5)
    np.testing.assert_array_equal(total.image, client.decode(total.latents[np.newaxis])[0])
    mixed = client.interpolate(IMAGES[:1], latents=mean[1:], n=5)
    added = client.arithmetic([png(image) for image in IMAGES[:2]], latents=mean[:1], weights=[1, 1, -1])
    np.testing.assert_allclose(added.latents, mean[1], atol=1e-5)
    assert client.similarity(IMAGES[:1], latents=mean).shape == (3, 3)
    np.testing.assert_allclose(mixed.astype(int), frames, atol=1)
    alike = client.similarity(IMAGES)
    np.testing.assert_allclose(np.diag(alike), 1, atol=1e-6)
    assert client.map("tiny")["points"].shape == (40, 2)
    animation = client.picture("/interpolate", IMAGES[:2], media_type="image/gif", n=4)
    assert Image.open(io.BytesIO(animation)).n_frames == 4
