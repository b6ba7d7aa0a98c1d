"""Whatever way images are sent and answers asked for, over a real socket: the same numbers."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.service.http.test_routes import from_image, from_npy, npy, problem
from vaeserve.bundle.images import encode_image
from vaeserve.bundle.repository import open_engine

N = 9
CLOSE = {"atol": 1e-5, "rtol": 0}


def as_file(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_form(files, **fields):
    return {"files": [("images", (f"{i}.png", file)) for i, file in enumerate(files)], "data": fields}


def bodies(images):
    """One and the same uint8 [n, h, w, 1] in every kind of body that can hold several."""
    files = [encode_image(image) for image in images]
    return {
        "base64": {"json": {"images": [base64.b64encode(file).decode() for file in files]}},
        "nested": {"json": {"images": images.tolist()}},
        "nested without channels": {"json": {"images": images[..., 0].tolist()}},
        "npy": {"content": npy(images), "headers": {"Content-Type": "application/x-npy"}},
        "multipart": as_form(files),
    }


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).integers(0, 256, (N, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def alone(http, images):
    """The answers to each image by itself, as a bare PNG: (mean, logvar, reconstruction, error)."""
    rows = []
    for image in images:
        file = {"content": encode_image(image), "headers": {"Content-Type": "image/png"}}
        posterior = http.post("/encode?return=mean,logvar", **file).json()
        answer = http.post("/reconstruct", **file).json()
        pixels = from_image(base64.b64decode(answer["images"][0]))
        rows.append((posterior["mean"][0], posterior["logvar"][0], pixels, answer["error"][0]))
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("body", ["base64", "nested", "nested without channels", "npy", "multipart"])
def test_every_row_of_a_batch_is_the_answer_to_its_image_alone(http, images, alone, body):
    mean, logvar, pixels, error = alone
    sent = bodies(images)[body]
    headers = sent.pop("headers", {})

    answer = http.post("/encode?return=mean,logvar", headers=headers, **sent).json()
    np.testing.assert_allclose(answer["mean"], mean, **CLOSE)
    np.testing.assert_allclose(answer["logvar"], logvar, **CLOSE)
    answer = http.post("/encode", headers=headers | {"Accept": "application/x-npy"}, **sent)
    np.testing.assert_allclose(from_npy(answer), mean, **CLOSE)

    answer = http.post("/reconstruct", headers=headers, **sent).json()
    np.testing.assert_allclose(answer["error"], error, **CLOSE)
    for data, image in zip(answer["images"], pixels, strict=True):
        np.testing.assert_array_equal(from_image(base64.b64decode(data)), image)
    answer = http.post("/reconstruct", headers=headers | {"Accept": "application/x-npz"}, **sent)
    with np.load(io.BytesIO(answer.content)) as archive:
        np.testing.assert_array_equal(archive["images"], pixels)
        np.testing.assert_allclose(archive["error"], error, **CLOSE)
    sheet = from_image(http.post("/reconstruct", headers=headers | {"Accept": "image/png"}, **sent).content)
    for index, image in enumerate(pixels):  # 3 × 3, two black pixels between
        top, left = 2 + index // 3 * 10, 2 + index % 3 * 10
        np.testing.assert_array_equal(sheet[top : top + 8, left : left + 8], image)
    jpeg = http.post("/reconstruct", headers=headers | {"Accept": "image/jpeg"}, **sent)
    assert from_image(jpeg.content).shape == sheet.shape


@pytest.mark.parametrize("body", ["json", "npy"])
def test_every_row_of_many_latents_is_decoded_as_alone(http, body):
    latents = np.random.default_rng(4).standard_normal((N, 4)).astype(np.float32)

    def decoded(rows):
        accept = {"Accept": "application/x-npy"}
        if body == "json":
            return from_npy(http.post("/decode", json={"latents": rows.tolist()}, headers=accept))
        headers = accept | {"Content-Type": "application/x-npy"}
        return from_npy(http.post("/decode", content=npy(rows), headers=headers))

    np.testing.assert_array_equal(decoded(latents), np.concatenate([decoded(row[None]) for row in latents]))


def pictures():
    """(name, file, the pixels that a person sees in it)"""
    rng = np.random.default_rng(5)
    grey = rng.integers(0, 256, (8, 8), dtype=np.uint8)
    as_l = Image.fromarray(grey)
    for orientation, seen in {
        1: grey,
        2: grey[:, ::-1],
        3: grey[::-1, ::-1],
        4: grey[::-1],
        5: grey.T,
        6: np.rot90(grey, -1),
        7: np.rot90(grey, 2).T,
        8: np.rot90(grey),
    }.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"EXIF {orientation}", as_file(as_l, exif=exif), seen
    wide = rng.integers(0, 65536, (8, 8)).astype(np.uint16)
    yield "16 bits", as_file(Image.fromarray(wide)), np.rint(wide / 257).astype(np.uint8)
    yield "palette", as_file(as_l.convert("P")), grey
    yield "one bit", as_file(as_l.convert("1")), np.asarray(as_l.convert("1").convert("L"))
    yield "RGB", as_file(as_l.convert("RGB")), grey
    hidden = as_l.copy()
    hidden.putalpha(Image.new("L", (8, 8), 0))
    yield "transparent", as_file(hidden), np.full((8, 8), 255, np.uint8)
    shown = as_l.copy()
    shown.putalpha(Image.new("L", (8, 8), 255))
    yield "opaque", as_file(shown), grey
    # An animated palette image; what it shows first counts.
    frames = [as_l.convert("P"), Image.new("P", (8, 8), 0)]
    yield "GIF", as_file(frames[0], "GIF", save_all=True, append_images=frames[1:]), grey
    yield "APNG", as_file(as_l, "PNG", save_all=True, append_images=[Image.new("L", (8, 8), 9)]), grey
    first, second = as_l.convert("RGB"), Image.new("RGB", (8, 8))
    moving = as_file(first, "WEBP", save_all=True, append_images=[second], lossless=True)
    yield "WebP", moving, grey
    yield "BMP", as_file(as_l, "BMP"), grey


@pytest.mark.parametrize(("name", "file", "seen"), [pytest.param(*each, id=each[0]) for each in pictures()])
def test_pictures_are_what_a_person_sees_in_them(http, name, file, seen):
    expected = http.post(
        "/encode", content=npy(seen[None]), headers={"Content-Type": "application/x-npy"}
    ).json()
    bare = http.post(
        "/encode", content=file, headers={"Content-Type": "image/png"}
    )  # any type of image will do
    np.testing.assert_allclose(bare.json()["mean"], expected["mean"], **CLOSE)
    in_a_form = http.post("/encode", **as_form([file]))
    np.testing.assert_allclose(in_a_form.json()["mean"], expected["mean"], **CLOSE)
    in_json = http.post("/encode", json={"images": [base64.b64encode(file).decode()]})
    np.testing.assert_allclose(in_json.json()["mean"], expected["mean"], **CLOSE)


def test_cmyk_is_seen_in_its_colours(http, repository):
    """Printers' colours have no exact equivalent; the reconstruction's input must be near to red."""
    file = as_file(Image.new("CMYK", (10, 12), (0, 255, 255, 0)), "JPEG", quality=100)
    red = np.tile(np.uint8([254, 0, 0]), (1, 12, 10, 1))
    answer = http.post("/models/colour/encode", content=file, headers={"Content-Type": "image/jpeg"})
    mean = np.array(answer.json()["mean"])
    expected = open_engine(repository / "colour/1").encode(red).mean
    assert np.abs(mean - expected).max() < 0.1 * np.abs(expected).max()


# --- forms ------------------------------------------------------------------------------------------------


def test_a_form_has_options_as_fields(http, images):
    files = [encode_image(image) for image in images]
    fields = {"seed": "7", "return": ["mean", "sample"], "model": "tiny@2"}
    answer = http.post("/encode", **as_form(files, **fields))
    said = {"images": images.tolist(), "return": ["mean", "sample"], "seed": 7}
    expected = http.post("/encode", json=said)
    assert list(answer.json()) == ["model", "mean", "sample", "seed"]
    np.testing.assert_allclose(answer.json()["sample"], expected.json()["sample"], **CLOSE)
    joined = http.post("/encode?seed=7", **as_form(files, **{"return": "mean,sample"}))
    assert joined.json() == answer.json()
    named = http.post("/reconstruct", **as_form(files[:1], model="colour"))
    assert named.json()["model"] == "colour@1"


@pytest.mark.parametrize(
    ("fields", "pointer", "said"),
    [
        ({"seed": "x"}, "/seed", "valid integer"),
        ({"seed": ["1", "2"]}, "/seed", "valid integer"),
        ({"return": "variance"}, "/return/0", "'mean', 'logvar', 'sample', 'kl' or 'active'"),
        ({"file": "x"}, "/file", "not permitted"),
        ({"model": "a" * 200}, "/model", "at most 128"),
    ],
)
def test_a_wrong_field_of_a_form_is_pointed_at(http, images, fields, pointer, said):
    answer = http.post("/encode", **as_form([encode_image(images[0])], **fields))
    (error,) = problem(answer, 422, "invalid-request")["errors"]
    assert error["pointer"] == pointer
    assert said in error["detail"]


def test_a_form_that_contradicts_its_url(http, images):
    answer = http.post("/encode?seed=8", **as_form([encode_image(images[0])], seed="7"))
    assert problem(answer, 422, "invalid-request")["errors"][0]["pointer"] == "/seed"


def test_a_broken_file_of_a_form_is_pointed_at(http, images):
    files = [encode_image(images[0]), b"hello"]
    (error,) = problem(http.post("/encode", **as_form(files)), 422, "bad-image")["errors"]
    assert error["pointer"] == "/images/1"


def test_a_form_without_images_says_how_they_are_sent(http):
    body = problem(http.post("/encode", files={"images_": b"x"}), 422, "invalid-request")
    assert body["errors"][0]["pointer"] == "/images_"
    body = problem(http.post("/encode", files=[("seed", (None, "7"))]), 422, "invalid-request")
    assert "-F images=@" in body["detail"]


def test_the_limits_hold_for_forms(http, images):
    many = [encode_image(images[0])] * 257
    problem(http.post("/encode", **as_form(many)), 413, "too-large")
    assert http.post("/encode", **as_form(many[:256])).status_code == 200
    large = encode_image(np.zeros((1025, 1024, 1), np.uint8))
    problem(http.post("/encode", **as_form([large])), 413, "too-large")
    almost = encode_image(np.zeros((1024, 1000, 1), np.uint8))
    assert http.post("/encode", **as_form([almost] * 4)).status_code == 200
    assert "together" in problem(http.post("/encode", **as_form([almost] * 5)), 413, "too-large")["detail"]


def test_latents_come_in_no_form(http):
    answer = http.post("/decode", files={"latents": b"x"})
    assert (
        "send application/json, application/x-npy" in problem(answer, 415, "unsupported-media-type")["detail"]
    )


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json;q=0.2, application/x-npz;q=0.9", "application/x-npz"),
        ("image/*;q=0.9, application/*;q=0.5", "image/png"),
        ("image/jpeg, image/png;q=0.99", "image/jpeg"),
        ("*/*;q=0.1, application/x-npy;q=0.2", "application/x-npy"),
        ("application/json;q=0, */*", "application/x-npy"),
    ],
)
def test_the_most_wanted_form_is_answered(http, accept, kind):
    answer = http.get("/sample?n=2", headers={"Accept": accept})
    assert answer.headers["content-type"] == kind
    assert answer.headers["vary"] == "Accept"
