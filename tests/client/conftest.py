"""A live service with two small models for the client to talk to."""

import pytest

from tests.bundles import make_bundle
from tests.live import serving
from vaeserve import Client


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    make_bundle(models, "tiny")
    make_bundle(models, "colour", channels=3, latent=(2, 3))
    with serving(models, "--default-model", "tiny") as url:
        yield url


@pytest.fixture
def client(service):
    with Client(service) as client:
        yield client
