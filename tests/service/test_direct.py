"""The short way answers what the long one answers."""

import httpx
import pytest

from service.settings import Settings
from tests.conftest import in_a_thread

QUERIES = (
    "",
    "seed=7&n=2",
    "n=0",
    "n=two",
    "n=1&n=3",
    "seed=",
    "colour=red",
    "return=latents&return=latents",
    "return=mean,logvar",
    "return=all",
    "temperature=nan",
    "model=tiny@9",
    "model=nobody&model=tiny@1",
)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_means_the_same_on_the_short_and_the_long_path(http, query):
    for method, path in (("GET", "/sample"), ("POST", "/decode")):
        data = {"content": b'{"latents": [[0, 0, 0, 0]]}', "headers": {"Content-Type": "application/json"}}
        body = data if method == "POST" else {}
        seeded = query if "seed" in query or path != "/sample" else f"{query}&seed=1".strip("&")
        short = http.request(method, f"{path}?{seeded}", **body)
        long = http.request(method, f"/models/tiny{path}?{seeded}", **body)
        assert short.status_code == long.status_code
        if short.is_success:
            assert short.content == long.content
        else:
            assert {**short.json(), "instance": ""} == {**long.json(), "instance": ""}


def test_head_and_wrong_methods_are_answered_as_everywhere(http):
    assert http.get("/encode").status_code == 405
    assert http.post("/sample?n=1").status_code == 200
    assert http.request("DELETE", "/sample").headers["allow"] == "GET, POST"


@pytest.mark.parametrize("path", ["/encode", "/models/tiny/encode"])
def test_a_fault_of_ours_is_a_problem_on_the_short_and_the_long_path(path, repository, monkeypatch):
    def fail(*_):
        raise RuntimeError("secret")

    with in_a_thread(Settings(models=repository / "tiny/1")) as url:
        monkeypatch.setattr("service.runtime.engine._check_array", fail)
        answer = httpx.post(url + path, json={"images": [[[0] * 8] * 8]})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["instance"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text
