"""The framing of the Open Inference Protocol: each kind of wrong body gets its error."""

import contextlib
import gzip
import json
import zlib

import numpy as np
import pytest

from service.core.problems import InvalidRequest, TooLarge, UnsupportedMediaType, WrongShape
from service.oip import tensors
from service.oip.tensors import Spec

IMAGE, Z = Spec("image", "UINT8", (2, 2, 1)), Spec("z", "FP32", (2,))
OUTPUTS = (Spec("mean", "FP32", (2,)), Spec("count", "INT64", (1,)))
PIXELS = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
GOOD = {"name": "image", "shape": [2, 2, 2, 1], "datatype": "UINT8"}


def read(request, rest=b"", *, inputs=(IMAGE,)):
    head = json.dumps(request).encode()
    return tensors.read(head + rest, str(len(head)) if rest else None, inputs, OUTPUTS, max_rows=4)


@pytest.mark.parametrize("data", [list(range(8)), PIXELS.tolist(), PIXELS.reshape(2, 4).tolist()])
def test_numbers_are_nested_like_the_shape_or_flat(data):
    request = {"inputs": [GOOD | {"data": data}]}
    if np.ndim(data) == 2:
        with pytest.raises(WrongShape, match=r"is \[2, 4\]; its `shape` is \[2, 2, 2, 1\]"):
            read(request)
    else:
        np.testing.assert_array_equal(read(request).inputs["image"], PIXELS)


def test_several_tensors_in_binary_and_in_json_in_any_order():
    z = np.array([[0.5, -1]], "<f4")
    request = {
        "inputs": [
            {"name": "z", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
            {"name": "image", "shape": [1, 2, 2, 1], "datatype": "UINT8", "data": [1, 2, 3, 4]},
        ],
        "outputs": [{"name": "count"}, {"name": "mean", "parameters": {"binary_data": False}}],
        "parameters": {"binary_data_output": True, "anything": [1]},
        "model_name": "ignored",
    }
    asked = read(request, z.tobytes(), inputs=(IMAGE, Z))
    np.testing.assert_array_equal(asked.inputs["z"], z)
    assert asked.inputs["z"].flags.aligned
    assert asked.inputs["image"].shape == (1, 2, 2, 1)
    assert asked.outputs == {"count": True, "mean": False}
    assert list(asked.outputs) == ["count", "mean"]


def test_an_answer_is_read_back_as_it_was_written():
    arrays = {"mean": np.array([[1.5, np.nan]], np.float32), "count": np.array([[7]])}
    body, headers = tensors.write({"id": "a"}, arrays, OUTPUTS, {"count": True, "mean": False})
    length = int(headers[tensors.HEADER_LENGTH])
    assert json.loads(body[:length]) == {
        "id": "a",
        "outputs": [
            {"name": "count", "datatype": "INT64", "shape": [1, 1], "parameters": {"binary_data_size": 8}},
            {"name": "mean", "datatype": "FP32", "shape": [1, 2], "data": [1.5, None]},
        ],
    }
    assert body[length:] == np.int64(7).tobytes()
    body, headers = tensors.write({}, arrays, OUTPUTS, {"mean": False})
    assert headers == {"Content-Type": "application/json"}
    assert json.loads(body)["outputs"][0]["name"] == "mean"


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"data": [0] * 7}, WrongShape, "is [7]; its `shape` is [2, 2, 2, 1]"),
        ({"data": [256] * 8}, InvalidRequest, "values that are not UINT8"),
        ({"data": [-1] * 8}, InvalidRequest, "values that are not UINT8"),
        ({"data": [1.5] * 8}, InvalidRequest, "integers only"),
        ({"data": [True] * 8}, InvalidRequest, "integers only"),
        ({"data": ["1"] * 8}, InvalidRequest, "integers only"),
        ({"data": [None] * 8}, InvalidRequest, "integers only"),
        ({"data": [10**30] * 8}, InvalidRequest, "integers only"),
        ({"data": [[1], [1, 2]]}, WrongShape, "different lengths"),
        ({"data": {}}, InvalidRequest, "integers only"),
        ({"datatype": "FP32", "data": [0] * 8}, WrongShape, "send UINT8, nothing is converted"),
        ({"datatype": None, "data": [0] * 8}, WrongShape, "send UINT8"),
        ({"shape": [2, 2, 2], "data": [0] * 8}, WrongShape, "must be [-1, 2, 2, 1]"),
        ({"shape": [0, 2, 2, 1], "data": []}, WrongShape, "must be [-1, 2, 2, 1]"),
        ({"shape": [2.0, 2, 2, 1], "data": [0] * 8}, WrongShape, "must be"),
        ({"shape": None, "data": [0] * 8}, WrongShape, "must be"),
        ({"shape": [5, 2, 2, 1], "data": [0] * 20}, TooLarge, "more than the 4"),
        ({"shape": [10**18, 2, 2, 1], "data": [0]}, TooLarge, "more than the 4"),
        ({}, InvalidRequest, "either `data` or a `binary_data_size`"),
        ({"data": [0] * 8, "parameters": {"binary_data_size": 8}}, InvalidRequest, "either"),
        ({"parameters": {"binary_data_size": 8}}, InvalidRequest, "0 bytes are left"),
        ({"parameters": {"binary_data_size": "8"}}, InvalidRequest, "0 bytes are left"),
        ({"parameters": {"shared_memory_region": "r"}}, InvalidRequest, "no shared memory"),
        ({"name": "pixels", "data": [0] * 8}, InvalidRequest, "this model takes image once"),
        ({"name": ["image"], "data": [0] * 8}, InvalidRequest, "this model takes image once"),
    ],
)
def test_a_tensor_that_is_wrong(change, kind, said):
    with pytest.raises(kind) as caught:
        read({"inputs": [GOOD | change]})
    assert type(caught.value) is kind
    assert said in caught.value.detail


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ([], "The request must be a JSON object"),
        ({}, "`inputs` must be a list"),
        ({"inputs": []}, "`inputs` has no tensor image"),
        ({"inputs": [7]}, "must be a JSON object"),
        ({"inputs": [GOOD | {"data": [0] * 8}] * 2}, "a tensor twice"),
        ({"inputs": [], "parameters": 7}, "`parameters` must be a JSON object"),
        ({"inputs": [], "parameters": {"triton_x": 1}}, "'triton_x' is reserved"),
        ({"inputs": [], "parameters": {"headers": 1}}, "'headers' is reserved"),
        ({"inputs": [], "id": 7}, "`id` must be a string"),
        ({"outputs": [{"name": "other"}]}, "asks for 'other'; there are mean, count"),
        ({"outputs": [{"name": "mean"}] * 2}, "there are mean, count, each once"),
        ({"outputs": 7}, "`outputs` must be a list"),
        ({"outputs": [{"name": "mean", "parameters": {"classification": 3}}]}, "asks for classification"),
    ],
)
def test_a_request_that_is_wrong(request_, said):
    if isinstance(request_, dict) and "outputs" in request_:
        request_ |= {"inputs": [GOOD | {"data": [0] * 8}]}
    with pytest.raises(InvalidRequest) as caught:
        read(request_)
    assert said in caught.value.detail


def test_lengths_that_do_not_add_up():
    request = {"inputs": [GOOD | {"parameters": {"binary_data_size": 8}}]}
    np.testing.assert_array_equal(read(request, PIXELS.tobytes()).inputs["image"], PIXELS)
    with pytest.raises(InvalidRequest, match="1 bytes follow the tensors"):
        read(request, bytes(9))
    with pytest.raises(InvalidRequest, match="7 bytes are left"):
        read(request, bytes(7))
    request["inputs"][0]["parameters"]["binary_data_size"] = 7
    with pytest.raises(WrongShape, match="image has 7 bytes"):
        read(request, bytes(7))
    for length in ("-1", "1e3", "99", "", "9" * 4301, "x"):
        with pytest.raises(InvalidRequest, match="must be the number of bytes of the JSON"):
            tensors.read(b"{}", length, (IMAGE,), OUTPUTS, 4)
    with pytest.raises(WrongShape, match="image has 5 bytes"):
        tensors.read(bytes(5), "0", (IMAGE,), OUTPUTS, 4)
    with pytest.raises(InvalidRequest, match="this model takes 2"):
        tensors.read(bytes(4), "0", (IMAGE, Z), OUTPUTS, 4)


@pytest.mark.parametrize("numbers", [b"[1e39, 0]", b"[1e999, 0]", b"[NaN, 0]"])
def test_numbers_that_are_not_finite(numbers):
    body = b'{"inputs":[{"name":"z","shape":[1,2],"datatype":"FP32","data":%b}]}' % numbers
    with pytest.raises(InvalidRequest, match=r"not finite|not JSON"):
        tensors.read(body, None, (Z,), OUTPUTS, 4)
    request = {
        "inputs": [{"name": "z", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]
    }
    with pytest.raises(InvalidRequest, match="not finite"):
        read(request, np.array([0, np.inf], "<f4").tobytes(), inputs=(Z,))


def test_any_bytes_are_read_or_refused():
    """A thousand bodies near a good one raise only errors that the client receives."""
    good = json.dumps({"inputs": [GOOD | {"data": list(range(8))}], "outputs": [{"name": "mean"}]}).encode()
    rng = np.random.default_rng(0)
    for _ in range(1000):
        body = bytearray(good)
        for at in rng.integers(0, len(body), rng.integers(1, 4)):
            body[at] = rng.choice(list(b'0123456789-"[]{}:,.eE \x00\xff'))
        length = None if rng.random() < 0.5 else str(rng.integers(-2, len(body) + 2))
        with contextlib.suppress(InvalidRequest, TooLarge):
            tensors.read(bytes(body), length, (IMAGE,), OUTPUTS, 4)


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("DEFLATE ", zlib.compress)])
def test_compressed_bodies_are_unpacked_within_the_limit(coding, pack):
    assert tensors.inflate(pack(b"x" * 100), coding, 100) == b"x" * 100
    with pytest.raises(TooLarge, match="more than the 99 bytes"):
        tensors.inflate(pack(b"x" * 100), coding, 99)
    for broken in (b"", b"plain", pack(b"x" * 100)[:-5], pack(b"x") + b"more"):
        with pytest.raises(InvalidRequest):
            tensors.inflate(broken, coding, 1000)
    for name in ("gzip", "deflate"):
        assert tensors.inflate(tensors.deflate(b"abc" * 99, name), name, 1000) == b"abc" * 99
    assert tensors.inflate(b"as it is", "identity", 0) == b"as it is"
    with pytest.raises(UnsupportedMediaType):
        tensors.inflate(b"", "br", 100)


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("", None),
        ("br, *", None),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("GZIP;q=0.5", "gzip"),
        ("gzip;q=0, deflate;q=0.1", "deflate"),
        ("gzip;q=0.000", None),
    ],
)
def test_only_codings_that_are_named_are_used(accepted, coding):
    assert tensors.coding(accepted) == coding
