"""Services for the tests to call: real models, real sockets, no stand-ins."""

import contextlib
import socket
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn

from service.app import create_app
from service.server.protocol import Http
from service.settings import Settings
from tests import live
from tests.bundles import make_bundle, make_draft
from tests.checkout import ROOT
from vaeserve.bundle.files import Draft, publish


@pytest.fixture
def free_port():
    return live.free_port()


@pytest.fixture(scope="session")
def shipped_service():
    """`vae-serve` as a user starts it, with the models of the checkout."""
    with live.serving(ROOT / "models") as url:
        yield url


@pytest.fixture(scope="session")
def mnist(tmp_path_factory):
    """The URL of a service of one model of the name and shape that the documentation's examples are for."""
    bundle = make_bundle(tmp_path_factory.mktemp("mnist"), "mnist", 28, 28, 1, (32,))
    with in_a_thread(Settings(models=bundle, access_log=False)) as url:
        yield url


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """tiny@1, tiny@2 (8×8 grey, latents [4]) and colour@1 (12×10 RGB, latents [2, 3, 4])."""
    folder = tmp_path_factory.mktemp("repository")
    make_bundle(folder, seed=1)
    make_bundle(folder, seed=2)
    make_bundle(folder, "colour", 12, 10, 3, (2, 3, 4))
    return folder


@pytest.fixture(scope="session")
def service_url(repository):
    """A service of `repository` in a thread of this process; its default model is tiny@2."""
    settings = Settings(models=repository, default_model="tiny", max_body=2 << 20, max_pixels=1 << 20)
    with in_a_thread(settings) as url:
        yield url


@pytest.fixture(scope="session")
def http(service_url):
    with httpx.Client(base_url=service_url) as client:
        yield client


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """A client of a service of models that lack calibration, map and KL: plain@1, and bare@1, which has no
    likelihood either."""
    folder = tmp_path_factory.mktemp("plain")
    make_bundle(folder, "plain", held_out=0)
    with tempfile.TemporaryDirectory() as draft_folder:
        draft = make_draft(Path(draft_folder), "bare", held_out=0)
        publish(folder, "bare", Draft(draft.folder, draft.manifest.model_copy(update={"likelihood": None})))
    with in_a_thread(Settings(models=folder)) as url, httpx.Client(base_url=url) as client:
        yield client


@contextlib.contextmanager
def in_a_thread(settings, app=None):
    """The URL of a service with these settings, on uvicorn in a thread of this process; or of this `app`."""
    app = app or create_app(settings)
    config = uvicorn.Config(app, http=Http, log_config=None, lifespan="on", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            deadline = time.monotonic() + 30
            while httpx.get(f"{url}/readyz").status_code != 200:
                assert time.monotonic() < deadline, httpx.get(f"{url}/readyz").text
                time.sleep(0.02)
            yield url
        finally:
            server.should_exit = True
            thread.join()
