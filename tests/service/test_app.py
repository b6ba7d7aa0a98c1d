"""The application as a whole: its life from loading to stopping, its limits, its documentation."""

import asyncio
import base64
import threading

import httpx
import numpy as np
import pytest
from pydantic import BaseModel

from service.app import create_app
from service.http import bodies
from service.http.info import Health, ModelAnswer, ModelsAnswer, Readiness
from service.operations.decode import DecodeAnswer
from service.operations.encode import EncodeAnswer
from service.operations.reconstruct import ReconstructAnswer
from service.operations.sample import SampleAnswer
from service.settings import Settings
from tests.bundles import make_bundle
from vaeserve.bundle.engine import Engine


def with_app(settings, scenario, *, wait=True):
    """Runs `scenario(client)` on an application with these settings, without a socket."""
    loaded = threading.Event()

    async def main():
        app = create_app(settings, on_loaded=lambda service: loaded.set())
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            while wait and not loaded.is_set():
                await asyncio.sleep(0.01)
            return await scenario(client)

    return asyncio.run(main())


def test_alive_at_once_and_ready_when_the_models_are_there(repository, monkeypatch):
    hold = threading.Event()
    replay = Engine._replay_golden

    def slowly(engine):
        assert hold.wait(10)
        replay(engine)

    monkeypatch.setattr(Engine, "_replay_golden", slowly)

    async def scenario(client):
        assert (await client.get("/healthz")).status_code == 200
        for method, path in (("GET", "/readyz"), ("GET", "/sample"), ("POST", "/encode"), ("GET", "/models")):
            answer = await client.request(method, path, headers={"Content-Type": "image/png"})
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["type"] == "/problems/not-ready"
            assert "being loaded" in answer.json()["detail"]
        hold.set()
        while (await client.get("/readyz")).status_code == 503:
            await asyncio.sleep(0.01)
        assert (await client.get("/sample?model=tiny")).status_code == 200

    with_app(Settings(models=repository), scenario, wait=False)


@pytest.mark.parametrize("prepare", ["nothing", "empty", "broken", "other default"])
def test_without_a_model_it_is_never_ready_and_says_why(prepare, tmp_path):
    folder, said, default = tmp_path / "models", None, None
    match prepare:
        case "nothing":
            said = "is not a folder"
        case "empty":
            folder.mkdir()
            said = "holds no model; train one"
        case "broken":
            bundle = make_bundle(folder)
            (bundle / "encoder.onnx").write_bytes(b"x" * (bundle / "encoder.onnx").stat().st_size)
            said = "no model can be served: "
        case "other default":
            make_bundle(folder)
            default, said = "mnist", "the default model 'mnist' is not loaded; there are tiny"

    async def scenario(client):
        assert (await client.get("/healthz")).status_code == 200
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert said in answer.json()["detail"]
        assert (await client.get("/sample")).status_code == 503

    with_app(Settings(models=folder, default_model=default), scenario)


def test_what_is_refused_is_said_and_the_rest_is_served(tmp_path, caplog):
    make_bundle(tmp_path)
    newer = make_bundle(tmp_path)
    (newer / "decoder.onnx").write_bytes(b"torn")

    async def scenario(client):
        assert (await client.get("/sample")).headers["x-model"] == "tiny@1"
        refused = (await client.get("/models")).json()["refused"]
        assert list(refused) == [str(newer)]
        assert "decoder.onnx" in refused[str(newer)]

    with_app(Settings(models=tmp_path), scenario)
    assert "refused: " in caplog.text


@pytest.mark.parametrize(
    ("names", "chosen", "default"),
    [
        (["one"], None, "one"),
        (["mnist", "one"], None, "mnist"),
        (["one", "two"], None, None),
        (["mnist", "one"], "one", "one"),
    ],
)
def test_the_default_model(names, chosen, default, tmp_path):
    for name in names:
        make_bundle(tmp_path, name)

    async def scenario(client):
        answer = await client.get("/sample")
        if default:
            assert answer.json()["model"] == f"{default}@1"
        else:
            assert answer.status_code == 404
            assert "one of one, two" in answer.json()["detail"]

    with_app(Settings(models=tmp_path, default_model=chosen), scenario)


def test_one_bundle_can_be_served_alone(repository):
    async def scenario(client):
        assert (await client.get("/sample")).json()["model"] == "tiny@1"

    with_app(Settings(models=repository / "tiny/1"), scenario)


def test_a_model_that_fails_is_our_fault_and_the_next_request_is_served(repository, monkeypatch, caplog):
    decode = Engine.decode

    def failing(engine, latents):
        if (latents > 100).any():
            raise RuntimeError("the graph is on fire")
        return decode(engine, latents)

    monkeypatch.setattr(Engine, "decode", failing)

    async def scenario(client):
        answer = await client.post("/decode", json={"latents": [[1000, 0, 0, 0]]})
        assert answer.status_code == 500
        assert answer.json()["type"] == "/problems/internal"
        assert "fire" not in answer.text
        assert answer.json()["instance"] == answer.headers["x-request-id"]
        assert (await client.post("/decode", json={"latents": [[1, 0, 0, 0]]})).status_code == 200

    with_app(Settings(models=repository / "tiny/1"), scenario)
    assert "the graph is on fire" in caplog.text


def test_no_access_log(repository, caplog):
    caplog.set_level("INFO")
    with_app(Settings(models=repository / "tiny/1", access_log=False), lambda client: client.get("/healthz"))
    assert "service.access" not in {record.name for record in caplog.records}


def test_large_work_leaves_the_event_loop_free(repository):
    """While a large image is decoded, and a large body parsed, others are answered."""
    from vaeserve.bundle.images import encode_image

    large = encode_image(np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8))

    async def scenario(client):
        upload = asyncio.create_task(
            client.post("/encode", content=large, headers={"Content-Type": "image/png"})
        )
        answered = 0
        while not upload.done():
            await asyncio.sleep(0)
            assert (await client.get("/healthz")).status_code == 200
            answered += 1
        assert (await upload).status_code == 200
        assert answered > 5

    with_app(Settings(models=repository / "tiny/1"), scenario)


def test_large_images_are_decoded_in_the_pool_and_small_ones_at_once(repository, monkeypatch):
    from vaeserve.bundle.images import encode_image

    threads = []
    read_image = bodies.read_image

    def watched(*arguments, **options):
        found = read_image(*arguments, **options)
        threads.append(threading.current_thread().name)
        return found

    async def scenario(client):
        for side, where in ((100, threading.main_thread().name), (1000, "codec")):
            file = encode_image(np.zeros((side, side, 3), np.uint8))
            sent = {"content": file, "headers": {"Content-Type": "image/png"}}
            form = {"files": [("images", file)]}
            encoded = {"json": {"images": [base64.b64encode(file).decode()]}}
            for body in (sent, form, encoded):
                threads.clear()
                assert (await client.post("/encode", **body)).status_code == 200
                assert [name.rpartition("_")[0] or name for name in threads] == [where]

    monkeypatch.setattr(bodies, "read_image", watched)
    with_app(Settings(models=repository / "tiny/1"), scenario)


def test_everything_can_be_read_in_the_documentation(http):
    document = http.get("/openapi.json").json()
    operations = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    names = [operation["operationId"] for operation in operations.values()]
    assert len(names) == len(set(names))
    assert operations["POST", "/encode"]["operationId"] == "encode"
    assert operations["GET", "/models/{name}/sample"]["operationId"] == "sample_with_model"

    encode = operations["POST", "/encode"]
    assert set(encode["requestBody"]["content"]) >= {"application/json", "image/png", "application/x-npy"}
    assert set(encode["responses"]["200"]["content"]) >= {"application/json", "application/x-npy"}
    parameters = operations["GET", "/models/{name}/sample"]["parameters"]
    assert {"$ref": "#/components/parameters/name"} in parameters
    assert {each.get("name") for each in parameters} >= {"model", "n", "seed", "temperature", "return"}
    for operation in operations.values():
        for status in ("404", "422", "500", "503"):
            assert list(operation["responses"][status]["content"]) == ["application/problem+json"]


def test_every_reference_in_the_documentation_leads_somewhere(http):
    document = http.get("/openapi.json").json()
    found = []

    def walk(node):
        match node:
            case {"$ref": reference}:
                found.append(reference)
            case dict():
                for value in node.values():
                    walk(value)
            case list():
                for value in node:
                    walk(value)

    walk(document)
    assert found
    for reference in found:
        target = document
        for key in reference.removeprefix("#/").split("/"):
            target = target[key]


def test_answers_are_what_the_documentation_says(http):
    image = {"images": [[[0] * 8] * 8]}
    for kind, answer in (
        (EncodeAnswer, http.post("/encode?return=mean,logvar,sample", json=image)),
        (ReconstructAnswer, http.post("/reconstruct", json=image)),
        (DecodeAnswer, http.post("/decode", json={"latents": [[0, 0, 0, 0]]})),
        (SampleAnswer, http.get("/sample?return=latents")),
        (ModelsAnswer, http.get("/models")),
        (ModelAnswer, http.get("/models/tiny")),
        (Health, http.get("/healthz")),
        (Readiness, http.get("/readyz")),
    ):
        assert issubclass(kind, BaseModel)
        exact = type(kind.__name__, (kind,), {"model_config": {"extra": "forbid"}})
        exact.model_validate_json(answer.content)
