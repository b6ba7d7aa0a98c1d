"""The Open Inference Protocol as its best-known client, tritonclient, speaks it: sync and aio."""

import asyncio
import gzip
import json
import time
import zlib

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from service.oip.models import OPERATIONS
from service.oip.routes import EXTENSIONS
from service.oip.tensors import HEADER_LENGTH
from service.settings import Settings
from tests.bundles import make_bundle
from tests.conftest import in_a_thread
from tests.live import serving

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)


@pytest.fixture
def client(service_url):
    client = triton.InferenceServerClient(service_url.removeprefix("http://"))
    yield client
    client.close()


@pytest.fixture
def means(http):
    """What the service's own route says of IMAGES: mean and logvar."""
    answer = http.post(
        "/encode?model=tiny&return=mean,logvar", json={"images": IMAGES.squeeze(-1).tolist()}
    ).json()
    return np.array(answer["mean"], np.float32), np.array(answer["logvar"], np.float32)


def tensor(name, array, datatype, *, binary=True):
    sent = triton.InferInput(name, list(array.shape), datatype)
    return [sent.set_data_from_numpy(array, binary_data=binary)]


def images(array=IMAGES, *, binary=True):
    return tensor("image", array, "UINT8", binary=binary)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("compressed", [None, "gzip", "deflate"])
def test_encode_in_every_form(client, means, binary_in, binary_out, compressed):
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("logvar", "mean")]
    result = client.infer(
        "tiny.encode",
        images(binary=binary_in),
        outputs=outputs,
        request_id="42",
        request_compression_algorithm=compressed,
        response_compression_algorithm=compressed,
    )
    for name, expected in zip(("mean", "logvar"), means, strict=True):
        assert result.as_numpy(name).dtype == np.float32
        np.testing.assert_allclose(result.as_numpy(name), expected, atol=1e-5)
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tiny.encode", "2", "42")
    assert [each["name"] for each in answer["outputs"]] == (
        ["mean", "logvar"] if outputs is None else ["logvar", "mean"]
    )


def test_decode_reconstruct_and_sample_agree_with_the_other_routes(client, http, means):
    decoded = client.infer("tiny.decode", tensor("z", means[0], "FP32")).as_numpy("image")
    again = client.infer("tiny.reconstruct", images())
    np.testing.assert_array_equal(again.as_numpy("image"), decoded)
    rest = http.post("/reconstruct?model=tiny", json={"images": IMAGES.squeeze(-1).tolist()}).json()
    np.testing.assert_allclose(again.as_numpy("error")[:, 0], rest["error"], rtol=1e-5)

    seeds = np.array([[7], [0], [2**53 - 1]], np.int64)
    samples = client.infer("tiny.sample", tensor("seed", seeds, "INT64"), parameters={"temperature": 0.5})
    for row, seed in enumerate(seeds[:, 0]):
        query = {"model": "tiny", "seed": int(seed), "temperature": 0.5, "return": "latents"}
        alone = http.get("/sample", params=query).json()
        np.testing.assert_allclose(samples.as_numpy("z")[row], alone["latents"][0], rtol=1e-6)
        assert samples.as_numpy("image")[row].shape == (8, 8, 1)
    only = client.infer(
        "tiny.sample",
        tensor("seed", seeds, "INT64"),
        outputs=[triton.InferRequestedOutput("image")],
        model_version="2",
    )
    assert only.as_numpy("z") is None


def test_score_agrees_with_its_route(client, http):
    rest = http.post("/score?model=tiny&seed=7", json={"images": IMAGES.squeeze(-1).tolist()}).json()
    found = client.infer("tiny.score", images(), parameters={"seed": 7})
    names = {each["name"] for each in client.get_model_metadata("tiny.score")["outputs"]}
    assert names == {"elbo", "distortion", "rate", "error", "p_value"}
    for name in names:
        np.testing.assert_allclose(found.as_numpy(name)[:, 0], rest[name], rtol=1e-4)
    with pytest.raises(InferenceServerException, match="`seed` is wrong"):
        client.infer("tiny.score", images(), parameters={"seed": -1})


def test_colours_and_latents_that_are_no_vectors(client):
    array = rng.integers(0, 256, (2, 12, 10, 3), dtype=np.uint8)
    mean = client.infer("colour.encode", images(array)).as_numpy("mean")
    assert mean.shape == (2, 2, 3, 4)
    decoded = client.infer("colour.decode", tensor("z", mean, "FP32", binary=False)).as_numpy("image")
    np.testing.assert_array_equal(
        decoded, client.infer("colour.reconstruct", images(array)).as_numpy("image")
    )


def test_the_aio_client_joins_many_requests_into_batches(service_url, means):
    async def scenario():
        async with triton_aio.InferenceServerClient(service_url.removeprefix("http://")) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("tiny.encode")
            assert (await client.get_model_metadata("tiny.encode"))["name"] == "tiny.encode"
            assert (await client.get_model_config("tiny.encode"))["max_batch_size"] == 256
            assert len(await client.get_model_repository_index()) == 2 * len(OPERATIONS)
            with pytest.raises(InferenceServerException, match="There is no model 'other'") as caught:
                await client.get_model_metadata("other")
            assert caught.value.status() == "404"
            requests = (
                client.infer(
                    "tiny.encode",
                    images(IMAGES[row % 3][np.newaxis], binary=row % 2 == 0),
                    response_compression_algorithm=(None, "gzip", "deflate")[row % 3],
                )
                for row in range(24)
            )
            return [result.as_numpy("mean")[0] for result in await asyncio.gather(*requests)]

    np.testing.assert_allclose(asyncio.run(scenario()), np.tile(means[0], (8, 1)), atol=1e-5)


def test_what_there_is(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny.decode", "2")
    assert not client.is_model_ready("tiny.decode", "1")
    assert not client.is_model_ready("tiny")
    assert client.get_server_metadata()["extensions"] == EXTENSIONS
    listed = client.get_model_repository_index()
    assert {each["state"] for each in listed} == {"READY"}
    assert {each["name"] for each in listed} == {
        f"{model}.{function}" for model in ("tiny", "colour") for function in OPERATIONS
    }
    for model, version in ((each["name"], each["version"]) for each in listed):
        metadata, config = client.get_model_metadata(model, version), client.get_model_config(model)
        assert metadata["versions"] == [version]
        for field, configured in (("inputs", "input"), ("outputs", "output")):
            for tensor_, its in zip(metadata[field], config[configured], strict=True):
                assert (tensor_["name"], f"TYPE_{tensor_['datatype']}") == (its["name"], its["data_type"])
                assert tensor_["shape"] == [-1, *its["dims"]]
                assert its["dims"]


def test_what_was_refused_is_in_the_index(tmp_path):
    make_bundle(tmp_path, "good")
    bad = make_bundle(tmp_path, "bad")
    (bad / "encoder.onnx").write_bytes(b"x" * (bad / "encoder.onnx").stat().st_size)
    with in_a_thread(Settings(models=tmp_path)) as url:
        listed = httpx.post(f"{url}/v2/repository/index").json()
        refused = [each for each in listed if each["state"] == "UNAVAILABLE"]
        assert {(each["name"], each["version"]) for each in refused} == {
            (f"bad.{f}", "1") for f in OPERATIONS
        }
        assert "encoder.onnx" in refused[0]["reason"]
        only_ready = httpx.post(f"{url}/v2/repository/index", json={"ready": True}).json()
        assert {each["name"] for each in only_ready} == {f"good.{function}" for function in OPERATIONS}


def test_with_an_api_key_what_is_new_can_be_loaded(tmp_path):
    make_bundle(tmp_path, "first")
    key = {"Authorization": "Bearer secret"}
    with in_a_thread(Settings(models=tmp_path, api_keys="secret", poll=0)) as url:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        with pytest.raises(InferenceServerException, match="requires an API key") as caught:
            client.load_model("second")
        assert caught.value.status() == "401"
        with pytest.raises(InferenceServerException, match="no model 'second' in the repository"):
            client.load_model("second", headers=key)
        bad = make_bundle(tmp_path, "second")
        whole = (bad / "encoder.onnx").read_bytes()
        (bad / "encoder.onnx").write_bytes(b"x" * len(whole))
        with pytest.raises(InferenceServerException, match=r"in the repository: .*encoder\.onnx"):
            client.load_model("second", headers=key)
        make_bundle(tmp_path, "second")
        client.load_model("second", headers=key)
        assert client.is_model_ready("second.encode", headers=key)
        with pytest.raises(InferenceServerException, match="leave out `parameters`"):
            client.load_model("third", headers=key, config="{}")
        with pytest.raises(InferenceServerException, match="taking its folder out"):
            client.unload_model("second", headers=key)
        client.close()


def test_statistics_are_whole_and_true(tmp_path):
    bundle = make_bundle(tmp_path)
    with in_a_thread(Settings(models=bundle)) as url:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        for rows in (1, 3, 3):
            client.infer("tiny.encode", images(IMAGES[:rows]))
        client.infer("tiny.reconstruct", images())
        with pytest.raises(InferenceServerException, match="must be"):
            client.infer("tiny.encode", images(IMAGES[..., 0]))
        every = client.get_inference_statistics()["model_stats"]
        assert [(each["name"], each["version"]) for each in every] == [(f"tiny.{f}", "1") for f in OPERATIONS]
        (encode,) = client.get_inference_statistics("tiny.encode", "1")["model_stats"]
        (decode,) = client.get_inference_statistics("tiny.decode")["model_stats"]
        (reconstruct,) = client.get_inference_statistics("tiny.reconstruct")["model_stats"]
        client.close()

    def count(of):
        return {key: value["count"] for key, value in of["inference_stats"].items()}

    # The graph computed for tiny.reconstruct too; the requests are those for tiny.encode.
    assert (encode["inference_count"], encode["execution_count"]) == (10, 4)
    assert count(encode) == {
        "success": 3,
        "fail": 1,
        "queue": 3,
        "compute_input": 3,
        "compute_infer": 3,
        "compute_output": 3,
        "cache_hit": 0,
        "cache_miss": 0,
    }
    assert (decode["inference_count"], decode["execution_count"], decode["last_inference"]) == (3, 1, 0)
    assert (reconstruct["inference_count"], reconstruct["execution_count"]) == (3, 1)
    spent = {key: value["ns"] for key, value in encode["inference_stats"].items()}
    steps = sum(spent[key] for key in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert 0 < steps <= spent["success"]
    for each in numbers(every):
        assert type(each) is int


def test_statistics_are_of_all_workers(tmp_path):
    make_bundle(tmp_path)
    with serving(tmp_path, "--workers", "2") as url:
        for _ in range(12):  # each on a connection of its own, so that both workers have some
            client = triton.InferenceServerClient(url.removeprefix("http://"))
            client.infer("tiny.encode", images())
            client.infer("tiny.sample", tensor("seed", np.array([[1]]), "INT64"))
            client.close()
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        until = time.monotonic() + 10  # what the other worker did may be missing for the fifth of a second
        while True:
            (encode,) = client.get_inference_statistics("tiny.encode")["model_stats"]
            (sample,) = client.get_inference_statistics("tiny.sample")["model_stats"]
            counts = encode["inference_stats"]["success"]["count"], sample["inference_count"]
            if counts == (12, 12) or time.monotonic() > until:
                break
        client.close()
    assert encode["inference_stats"]["success"]["count"] == sample["inference_stats"]["queue"]["count"] == 12
    assert (encode["inference_count"], sample["inference_count"]) == (36, 12)
    assert encode["execution_count"] <= 12


def numbers(value):
    match value:
        case dict():
            return [number for each in value.values() for number in numbers(each)]
        case list():
            return [number for each in value for number in numbers(each)]
        case str():
            return []
    return [value]


def test_a_body_that_is_only_the_tensor(http, means):
    answer = http.post(
        "/v2/models/tiny.encode/infer", content=IMAGES[0].tobytes(), headers={HEADER_LENGTH: "0"}
    )
    length = int(answer.headers[HEADER_LENGTH])
    head, rest = json.loads(answer.content[:length]), answer.content[length:]
    assert [each["parameters"]["binary_data_size"] for each in head["outputs"]] == [16, 16]
    np.testing.assert_allclose(np.frombuffer(rest[:16], "<f4"), means[0][0], atol=1e-5)
    np.testing.assert_allclose(np.frombuffer(rest[16:], "<f4"), means[1][0], atol=1e-5)


def test_small_answers_and_answers_to_others_are_not_compressed(http):
    request = {"inputs": [{"name": "z", "shape": [64, 4], "datatype": "FP32", "data": [0.5] * 256}]}
    url = "/v2/models/tiny.decode/infer"
    for accepted, coding in (("gzip", "gzip"), ("deflate", "deflate"), ("br, *", None), ("gzip;q=0", None)):
        answer = http.post(url, json=request, headers={"Accept-Encoding": accepted})
        assert answer.headers.get("Content-Encoding") == coding
        assert answer.json()["outputs"][0]["shape"] == [64, 8, 8, 1]  # httpx undoes the encoding
    small = {"inputs": [{"name": "z", "shape": [1, 4], "datatype": "FP32", "data": [0.5] * 4}]}
    answer = http.post(url, json=small, headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in answer.headers
    assert "Content-Encoding" not in http.get("/v2", headers={"Accept-Encoding": "gzip"}).headers


BOMB = gzip.compress(bytes(8 << 20), 9)


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "said"),
    [
        ("GET", "/v2/nothing", {}, 404, "nothing at /v2/nothing"),
        ("GET", "/v2/models/tiny.encode/trace/setting", {}, 404, "nothing at"),
        ("POST", "/v2/repository/models/tiny/load", {}, 404, "nothing at"),
        ("GET", "/v2/models/tiny.encode/infer", {}, 405, "has no GET; it has POST"),
        ("POST", "/v2/models/tiny.paint/infer", {}, 404, "tiny.decode, tiny.encode"),
        ("GET", "/v2/models/tiny.encode/versions/7", {}, 409, "tiny@7 is not loaded; there is tiny@2"),
        ("GET", "/v2/models/tiny.encode/versions/x", {}, 404, "does not name a model"),
        ("POST", "/v2/repository/index", {"content": b"{"}, 422, "not JSON"),
        ("POST", "/v2/models/tiny.encode/infer", {"content": b""}, 422, "not JSON"),
        ("POST", "/v2/models/tiny.encode/infer", {"content": bytes(3 << 20)}, 413, "2,097,152 bytes allowed"),
        (
            "POST",
            "/v2/models/tiny.encode/infer",
            {"content": BOMB, "headers": {"Content-Encoding": "gzip"}},
            413,
            "unpacks to more than",
        ),
        (
            "POST",
            "/v2/models/tiny.encode/infer",
            {"content": zlib.compress(b"{}"), "headers": {"Content-Encoding": "br"}},
            415,
            "gzip and deflate",
        ),
    ],
)
def test_every_failure_under_v2_is_an_error_of_the_protocol(http, method, path, options, status, said):
    answer = http.request(method, path, **options)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    assert said in answer.json()["error"]
    assert f"(request {answer.headers['x-request-id']})" in answer.json()["error"]


def test_the_model_s_failure_and_the_request_s_own_deadline(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path)

    def fail(*_):
        raise RuntimeError("secret")

    with in_a_thread(Settings(models=bundle)) as url:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        with pytest.raises(InferenceServerException, match="timeout") as caught:
            client.infer("tiny.encode", images(), timeout=1)
        assert caught.value.status() == "504"
        monkeypatch.setattr("vaeserve.bundle.engine._check_array", fail)
        with pytest.raises(InferenceServerException, match="its log has the reason") as caught:
            client.infer("tiny.encode", images())
        assert caught.value.status() == "500"
        assert "secret" not in str(caught.value)
        client.close()
