"""The short way answers what the long one answers."""

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from service.http.router import Direct
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


@pytest.mark.parametrize(
    "path",
    ["/sample", "/models/tiny/sample", "/models/tiny/versions/2/sample", "/v2/models/tiny.sample/infer"],
)
def test_every_form_of_what_computes_goes_the_short_way(http, path, monkeypatch):
    def passed_on(*_):
        raise AssertionError("FastAPI was asked")

    monkeypatch.setattr("fastapi.routing.APIRoute.matches", passed_on)
    monkeypatch.setattr("starlette.routing.Route.matches", passed_on)
    sample = {"inputs": [{"name": "seed", "shape": [1, 1], "datatype": "INT64", "data": [2]}]}
    body = {"json": sample} if path.startswith("/v2") else {}
    answer = http.request("POST" if body else "GET", path, **body)
    assert answer.status_code == 200, answer.text
    assert http.get("/models").status_code == 500  # which goes the long way


@pytest.mark.parametrize(
    "path",
    ["/models//sample", "/models/tiny/version/1/sample", "/model/tiny/sample", "/x/sample"],
)
def test_a_path_that_only_looks_alike_is_not_found(http, path):
    assert http.get(path).json()["type"] == "/problems/not-found"


def test_paths_that_cannot_be_told_apart_are_refused():
    async def endpoint(request: Request) -> Response:
        return Response()

    with pytest.raises(ValueError, match="cannot be told apart"):
        Direct(None, operations=[("GET", "/a/{name}/b", endpoint), ("GET", "/{name}/c/b", endpoint)])


def test_head_and_wrong_methods_are_answered_as_everywhere(http):
    assert http.get("/encode").status_code == 405
    assert http.post("/sample?n=1").status_code == 200
    assert http.request("DELETE", "/sample").headers["allow"] == "GET, POST"


@pytest.mark.parametrize("path", ["/encode", "/models/tiny/encode"])
def test_a_fault_of_ours_is_a_problem_on_the_short_and_the_long_path(path, repository, monkeypatch):
    def fail(*_):
        raise RuntimeError("secret")

    with in_a_thread(Settings(models=repository / "tiny/1")) as url:
        monkeypatch.setattr("vaeserve.bundle.engine._check_array", fail)
        answer = httpx.post(url + path, json={"images": [[[0] * 8] * 8]})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["instance"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text
