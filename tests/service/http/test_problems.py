import asyncio
import json
import logging
import re

import httpx
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from service.core import problems
from service.core.admission import ClientGone
from service.core.metrics import Metrics
from service.core.problems import MEDIA_TYPE, kinds
from service.http.errors import ProblemMiddleware
from service.http.tracing import TracingMiddleware

# The table of the contract.
SLUGS = {
    "invalid-request": 422,
    "bad-image": 422,
    "wrong-shape": 422,
    "too-large": 413,
    "unsupported-media-type": 415,
    "not-acceptable": 406,
    "not-found": 404,
    "slow-request": 408,
    "unknown-model": 404,
    "wrong-model": 409,
    "no-prior": 409,
    "unauthorized": 401,
    "overloaded": 429,
    "not-ready": 503,
    "draining": 503,
    "timeout": 504,
    "internal": 500,
    "method-not-allowed": 405,
}


def answered(raised, headers=None):
    """The answer of an app that raises `raised`."""

    async def app(scope, receive, send):
        raise raised

    async def call():
        transport = httpx.ASGITransport(TracingMiddleware(ProblemMiddleware(app), metrics=Metrics()))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/some/path", headers=headers)

    return asyncio.run(call())


def test_the_slugs_are_those_of_the_contract():
    assert {kind.slug: kind.status for kind in kinds()} == SLUGS


@pytest.mark.parametrize("kind", list(kinds()))
def test_every_problem_is_answered_in_the_same_shape(kind):
    answer = answered(kind("Do this instead."), {"X-Request-ID": "abc-1"})
    assert answer.status_code == kind.status
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.headers["x-request-id"] == "abc-1"
    assert ("retry-after" in answer.headers) == (kind.slug in ("overloaded", "not-ready", "draining"))
    assert answer.json() == {
        "type": f"/problems/{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": "Do this instead.",
        "instance": "abc-1",
    }


def test_an_internal_error_reveals_only_its_id_and_logs_the_reason(caplog):
    answer = answered(RuntimeError("secret path /etc/x"))
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["instance"] == answer.headers["x-request-id"]
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info
    assert "secret path" in str(record.exc_info[1])


def test_starlette_s_errors_are_answered_in_the_same_shape(caplog):
    assert answered(HTTPException(404)).json()["type"] == "/problems/not-found"
    assert answered(HTTPException(400, "no")).json()["type"] == "/problems/invalid-request"
    assert answered(HTTPException(500, "boom")).json()["type"] == "/problems/internal"


@pytest.mark.parametrize("gone", [ClientDisconnect, ClientGone])
def test_a_client_that_disconnects_is_not_an_error(gone, caplog):
    caplog.set_level(logging.INFO)

    async def app(scope, receive, send):
        raise gone

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(TracingMiddleware(ProblemMiddleware(app), metrics=Metrics())(scope, None, send))
    assert not sent
    assert all(record.levelno < logging.WARNING for record in caplog.records)
    assert "GET / 499" in caplog.text


def test_an_error_after_the_answer_has_begun_closes_the_connection(caplog):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("in the middle")

    async def send(message):
        assert message["status"] == 200

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with pytest.raises(RuntimeError, match="in the middle"):
        asyncio.run(ProblemMiddleware(app)(scope, None, send))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("req-1", True),
        ("A" * 128, True),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("A" * 129, False),
        ("a b", False),
        ("a\tb", False),
        ('"quoted"', False),
        ("<script>", False),
        ("", False),
        ("é", False),
    ],
)
def test_request_ids_are_kept_if_they_are_safe(given, kept):
    answer = answered(problems.NotFound("x"), {"X-Request-ID": given.encode()})
    assert (answer.headers["x-request-id"] == given) == kept
    assert answer.headers["x-request-id"] == answer.json()["instance"]
    assert re.fullmatch(r"[\x21-\x7e]{1,128}", answer.headers["x-request-id"])


def test_a_path_cannot_forge_a_log_line(caplog):
    caplog.set_level(logging.INFO)
    answer = asyncio.run(
        _get(TracingMiddleware(Response("fine"), metrics=Metrics()), "/a%0d%0a2026-01-01 INFO forged")
    )
    assert answer.status_code == 200
    assert "\n" not in caplog.records[-1].getMessage()


async def _get(app, path):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path)


def test_an_answer_is_json_with_its_length():
    answer = answered(problems.NotFound("x"))
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert json.loads(answer.content)["status"] == 404
