"""The fast path and FastAPI's own routing answer every request alike."""

import contextlib

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from service.app import create_app
from service.http.router import FastPath, Route
from service.settings import Settings
from tests.arrays import NPY, npy
from tests.conftest import in_a_thread

LATENTS = {"content": b'{"latents": [[0, 0, 0, 0]]}', "headers": {"Content-Type": "application/json"}}
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


@contextlib.contextmanager
def service(repository, *, fast):
    """A client of a service with the fast path, or of one in which FastAPI routes every request."""
    settings = Settings(models=repository, default_model="tiny", access_log=False)
    app = create_app(settings)
    layer = app.middleware_stack
    while not isinstance(layer, FastPath):
        layer = layer.app
    if not fast:
        layer.table.clear()
    with in_a_thread(settings, app) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="module")
def fast(repository):
    with service(repository, fast=True) as client:
        yield client


@pytest.fixture(scope="module")
def general(repository):
    with service(repository, fast=False) as client:
        yield client


def alike(fast, general, method, path, **body):
    """Assert that both services give the same answer."""
    one, other = (client.request(method, path, **body) for client in (fast, general))
    assert one.status_code == other.status_code
    changing = {"x-request-id", "server-timing", "date"}
    headers = [{k: v for k, v in each.headers.items() if k not in changing} for each in (one, other)]
    assert headers[0] == headers[1]
    texts = [each.content.replace(each.headers["x-request-id"].encode(), b"") for each in (one, other)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_means_the_same(fast, general, query):
    seeded = query if "seed" in query else f"{query}&seed=1".strip("&")
    alike(fast, general, "GET", f"/sample?{seeded}")
    alike(fast, general, "GET", f"/models/tiny/sample?{seeded}")
    alike(fast, general, "POST", f"/models/tiny/versions/2/decode?{query}", **LATENTS)


def test_every_operation_is_answered_alike(fast, general, images):
    for path in ("/encode", "/reconstruct", "/score?seed=1", "/models/tiny/similarity"):
        alike(fast, general, "POST", path, content=npy(images), headers=NPY)
    alike(fast, general, "GET", "/models/tiny/map")
    alike(fast, general, "POST", "/encode", content=b"{", headers={"Content-Type": "application/json"})
    sample = {"inputs": [{"name": "seed", "shape": [1, 1], "datatype": "INT64", "data": [2]}]}
    alike(fast, general, "POST", "/v2/models/tiny.sample/infer", json=sample)
    alike(fast, general, "POST", "/v2/models/tiny.sample/infer", json={})


@pytest.mark.parametrize(
    "path",
    ["/sample", "/models/tiny/sample", "/models/tiny/versions/2/sample", "/v2/models/tiny.sample/infer"],
)
def test_every_form_of_an_operation_takes_the_fast_path(http, path, monkeypatch):
    def passed_on(*_):
        raise AssertionError("FastAPI was asked")

    monkeypatch.setattr("fastapi.routing.APIRoute.matches", passed_on)
    monkeypatch.setattr("starlette.routing.Route.matches", passed_on)
    sample = {"inputs": [{"name": "seed", "shape": [1, 1], "datatype": "INT64", "data": [2]}]}
    body = {"json": sample} if path.startswith("/v2") else {}
    answer = http.request("POST" if body else "GET", path, **body)
    assert answer.status_code == 200, answer.text
    assert http.get("/models").status_code == 500  # which FastAPI routes


@pytest.mark.parametrize(
    "path",
    ["/models//sample", "/models/tiny/version/1/sample", "/model/tiny/sample", "/x/sample"],
)
def test_a_similar_path_is_not_found(http, path):
    assert http.get(path).json()["type"] == "/problems/not-found"


def test_routes_that_cannot_be_distinguished_are_refused():
    async def endpoint(request: Request) -> Response:
        return Response()

    with pytest.raises(ValueError, match="cannot be distinguished"):
        FastPath(None, routes=[Route("GET", path, endpoint) for path in ("/a/{name}/b", "/{name}/c/b")])


def test_wrong_methods_list_the_right_ones(http):
    assert http.get("/encode").status_code == 405
    assert http.post("/sample?n=1").status_code == 200
    assert http.request("DELETE", "/sample").headers["allow"] == "GET, POST"


def test_a_fault_of_the_service_is_a_problem_on_both_paths(repository, monkeypatch):
    def fail(*_):
        raise RuntimeError("secret")

    with service(repository, fast=True) as fast, service(repository, fast=False) as general:
        monkeypatch.setattr("vaeserve.bundle.engine._check_array", fail)
        for client in (fast, general):
            answer = client.post("/encode", json={"images": [[[0] * 8] * 8]})
            assert answer.status_code == 500
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["instance"] == answer.headers["x-request-id"]
            assert "secret" not in answer.text
