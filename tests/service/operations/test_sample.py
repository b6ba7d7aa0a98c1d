"""GET /sample: truncated noise, and answers that a client may keep."""

import numpy as np

from tests.arrays import AS_PNG


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
    answer = http.get("/sample?seed=7", headers=AS_PNG)
    assert answer.headers["cache-control"] == "no-cache"
    known = {"If-None-Match": answer.headers["etag"]}
    again = http.get("/sample?seed=7", headers=AS_PNG | known)
    assert (again.status_code, again.content) == (304, b"")
    assert "immutable" in http.get("/sample?seed=7&model=tiny@2").headers["cache-control"]
    assert "immutable" in http.get("/models/tiny/versions/2/sample?seed=7").headers["cache-control"]
    for other in ("seed=8", "seed=7&n=2", "seed=7&truncation=1", "seed=7&model=colour"):
        assert http.get(f"/sample?{other}", headers=AS_PNG | known).status_code == 200
    assert http.get("/sample?seed=7", headers=known).status_code == 200  # as JSON
    assert "etag" not in http.get("/sample").headers
    assert "etag" not in http.post("/sample?seed=7").headers
