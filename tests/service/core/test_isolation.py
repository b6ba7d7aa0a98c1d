"""Faults stay in their batch and their request, and a model that hangs shows in the health checks."""

import io
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from service.settings import Settings
from tests.conftest import in_a_thread
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.repository import open_engine

POISON = 666.0


@pytest.fixture
def poisoned(repository, monkeypatch):
    """The URL of a service with batches of one row, whose decoder fails on latents that begin with POISON."""
    decode = Engine.decode

    def failing(engine, latents):
        if (latents[:, 0] == POISON).any():
            raise RuntimeError("the model is broken")
        return decode(engine, latents)

    monkeypatch.setattr(Engine, "decode", failing)
    with in_a_thread(Settings(models=repository / "tiny/1", max_batch=1, access_log=False)) as url:
        yield url


def decode(url, latents):
    body = {"latents": np.asarray(latents, np.float32).tolist()}
    return httpx.post(f"{url}/decode", json=body, headers={"Accept": "application/x-npz"}, timeout=60)


def test_a_failing_batch_fails_only_its_own_requests(poisoned, repository, caplog):
    engine = open_engine(repository / "tiny/1")
    latents = np.random.default_rng(0).standard_normal((30, 2, 4)).astype(np.float32)
    latents[::3, 1, 0] = POISON
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda each: decode(poisoned, each), latents))
    for index, (each, answer) in enumerate(zip(latents, answers, strict=True)):
        if index % 3 == 0:
            assert answer.status_code == 500
            assert answer.json()["type"] == "/problems/internal"
            assert "broken" not in answer.text
        else:
            assert answer.status_code == 200
            with np.load(io.BytesIO(answer.content)) as arrays:
                np.testing.assert_array_equal(arrays["images"], engine.decode(each))
    assert "the model is broken" in caplog.text
    failures = re.search(
        r'vae_failures_total\{graph="decoder",.*\} (\S+)', httpx.get(f"{poisoned}/metrics").text
    )
    assert float(failures[1]) == 10
    assert httpx.get(f"{poisoned}/healthz").status_code == 200
    assert httpx.get(f"{poisoned}/sample").status_code == 200


def test_invalid_requests_do_not_affect_valid_ones_sent_at_the_same_time(service_url):
    bad = [
        {"latents": [[1, 2, 3]]},
        {"latents": [[1, 2, 3, 1e39]]},
        {"latents": [["a", 2, 3, 4]]},
        {"latents": []},
    ]
    good = np.random.default_rng(1).standard_normal((20, 3, 4)).astype(np.float32)
    alone = [decode(service_url, each).content for each in good]
    with ThreadPoolExecutor(16) as pool:
        refused = [
            pool.submit(httpx.post, f"{service_url}/decode", json=bad[index % 4], timeout=60)
            for index in range(40)
        ]
        together = list(pool.map(lambda each: decode(service_url, each).content, good))
    assert together == alone
    assert {answer.result().status_code for answer in refused} == {422}


def test_the_health_checks_fail_while_the_model_hangs(repository, monkeypatch):
    decode, began, go = Engine.decode, threading.Event(), threading.Event()

    def hanging(engine, latents):
        began.set()
        assert go.wait(60)
        return decode(engine, latents)

    monkeypatch.setattr(Engine, "decode", hanging)
    settings = Settings(models=repository / "tiny/1", stuck_after=0.3, timeout=1, access_log=False)
    with in_a_thread(settings) as url:
        assert httpx.get(f"{url}/healthz").status_code == 200
        try:
            answer = httpx.get(f"{url}/sample", timeout=60)
            assert began.is_set()
            assert answer.status_code == 504
            for path in ("/healthz", "/readyz"):
                answer = httpx.get(url + path)
                assert answer.status_code == 503
                assert re.search(r"One batch has been running for \d+ s; restart", answer.json()["detail"])
            assert httpx.get(f"{url}/models").status_code == 200
        finally:
            go.set()
        assert httpx.get(f"{url}/sample", timeout=60).status_code == 200
        assert httpx.get(f"{url}/healthz").status_code == 200
