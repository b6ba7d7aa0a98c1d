"""Points and options that make no sense are refused, and the problem points at them."""

import pytest

LATENT = [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("path", "body", "pointer", "words"),
    [
        ("/interpolate", {"latents": [LATENT]}, "/latents", "has 1 points, images and latents together"),
        ("/interpolate", {}, "/images", "this operation takes 2"),
        ("/traverse", {"latents": [LATENT] * 2}, "/latents", "this operation takes at most 1"),
        ("/traverse", {"dimensions": [4]}, "/dimensions", "has the dimensions 0 to 3"),
        ("/arithmetic", {}, "/images", "this operation takes 1 or more"),
        ("/arithmetic", {"latents": [LATENT], "weights": [1, 2]}, "/weights", "send one for each"),
        ("/arithmetic", {"latents": [[1e30, 0, 0, 0]], "weights": [1e30]}, "/weights", "not finite"),
        ("/similarity", {"latents": [LATENT]}, "/latents", "this operation takes 2 or more"),
        ("/similarity", {"latents": [LATENT] * 2, "top": 2}, "/top", "has 1 others"),
        ("/similarity", {"latents": [LATENT] * 2, "metric": "symmetric_kl"}, "/latents", "send images"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(http, path, body, pointer, words):
    answer = http.post(path, json=body)
    problem = answer.json()
    assert answer.status_code == 422, answer.text
    assert words in problem["detail"]
    assert [(each["location"], each["pointer"]) for each in problem["errors"]] == [("body", pointer)]


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/traverse?dimensions=4", {}, "/dimensions"),
        ("/arithmetic?weights=1,2", {"latents": [LATENT]}, "/weights"),
        ("/similarity?top=2", {"latents": [LATENT] * 2}, "/top"),
    ],
)
def test_an_option_in_the_query_is_pointed_at_in_the_query(http, path, body, pointer):
    errors = http.post(path, json=body).json()["errors"]
    assert [(each["location"], each["pointer"]) for each in errors] == [("query", pointer)]
