"""GET /models/{name}/map, over a real socket."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.arrays import AS_PNG


@pytest.fixture(scope="module")
def latent_map(tiny):
    return tiny.map


def test_every_place_of_the_plane_is_a_latent(http, latent_map):
    answer = http.get("/models/tiny/map", params={"return": "latents"})
    body = answer.json()
    assert body["model"] == answer.headers["x-model"] == "tiny@2"
    mean, components, points = (np.array(body[name]) for name in ("mean", "components", "points"))
    latents = np.array(body["latents"])
    np.testing.assert_allclose(components @ components.T, np.eye(2), atol=1e-5)
    # What is projected and lifted again is where it was projected from, but for what the plane leaves out.
    np.testing.assert_allclose((latents - mean) @ components.T, points, atol=1e-4)
    decoded = http.post("/decode", json={"latents": (mean + points[:1] @ components).tolist()})
    assert decoded.status_code == 200
    assert 0 < sum(body["variance"]) <= 1
    assert body["label_names"] == ["a", "b"]
    assert body["labels"] == latent_map.labels.tolist()
    assert "latents" not in http.get("/models/tiny/map").json()


def test_the_thumbnails_lie_as_the_json_says(http, latent_map):
    layout = http.get("/models/tiny/map").json()["thumbnails"]
    sheet = np.asarray(Image.open(io.BytesIO(http.get("/models/tiny/map", headers=AS_PNG).content)))
    height, width, columns = layout["height"], layout["width"], layout["columns"]
    assert sheet.shape[1] == width * columns
    for index, thumbnail in enumerate(latent_map.thumbnails[..., 0]):
        row, column = divmod(index, columns)
        found = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
        np.testing.assert_array_equal(found, thumbnail)


def test_npz_holds_all_of_it(http, latent_map):
    answer = http.get("/models/colour/map", headers={"Accept": "application/x-npz"})
    with np.load(io.BytesIO(answer.content)) as archive:
        assert set(archive) == set(latent_map._fields)
        assert archive["thumbnails"].shape == (40, 12, 10, 3)
        assert archive["latents"].shape == (40, 2, 3, 4)


def test_it_is_kept_and_asked_for_again_at_no_cost(http):
    answer = http.get("/models/tiny/map")
    assert answer.headers["cache-control"] == "no-cache"
    again = http.get("/models/tiny/map", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]
    other = http.get("/models/tiny/map", headers=AS_PNG | {"If-None-Match": answer.headers["etag"]})
    assert other.status_code == 200
    pinned = http.get("/models/tiny/versions/2/map")
    assert "immutable" in pinned.headers["cache-control"]
    assert pinned.content == answer.content


def test_a_model_without_a_map_says_so(plain):
    answer = plain.get("/models/plain/map")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")
    assert "plain@1 has no map" in answer.json()["detail"]
