"""Malicious bundles are refused with a message, and read, load and run nothing."""

import io
import os
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.bundle.editing import edit, replace
from tests.bundles import decoder_graph, encoder_graph, make_draft, with_flow
from tests.checkout import ROOT
from vaeserve.bundle.files import BundleError, publish, read_bundle
from vaeserve.bundle.graph_check import GraphError, check_graph
from vaeserve.bundle.repository import open_engine


def refused(bundle, *words):
    with pytest.raises(BundleError) as error:
        open_engine(bundle)
    message = str(error.value)
    assert "\n" not in message
    assert ";" in message or ":" in message  # what is wrong, and what to do
    for word in words:
        assert word in message
    return message


def changed(change):
    """The encoder after `change`, without the checks of onnx."""
    model = onnx.load_from_string(encoder_graph((8, 8, 1), (4,), 0))
    change(model)
    return model.SerializeToString()


def external(model):
    tensor = next(each for each in model.graph.initializer if each.name == "w_mean")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def external_without_the_location(model):
    next(iter(model.graph.initializer)).external_data.add(key="location", value="/etc/passwd")


def external_in_a_constant(model):
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1])
    external_data = tensor.external_data.add()
    external_data.key, external_data.value = "location", "/etc/passwd"
    tensor.data_location = TensorProto.EXTERNAL
    model.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=tensor))


def external_in_a_sparse_tensor(model):
    sparse = model.graph.sparse_initializer.add()
    sparse.values.name = "s"
    sparse.values.data_location = TensorProto.EXTERNAL


def custom_domain(model):
    model.graph.node[1].domain = "com.evil"
    model.opset_import.append(helper.make_opsetid("com.evil", 1))


def domain_in_a_function(model):
    node = helper.make_node("Run", ["x"], ["y"], domain="com.evil")
    function = helper.make_function("local", "F", ["x"], ["y"], [node], [helper.make_opsetid("com.evil", 1)])
    model.functions.append(function)


def endless_loop(model):
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))


def training(model):
    model.training_info.add()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "keeps weights in another file; export the model into one"),
        (external_without_the_location, "keeps weights in another file"),
        (external_in_a_constant, "keeps weights in another file"),
        (external_in_a_sparse_tensor, "keeps weights in another file"),
        (custom_domain, "from the domain 'com.evil', which is not part of ONNX"),
        (domain_in_a_function, "from the domain 'com.evil'"),
        (endless_loop, "'Loop' runs a sub-graph, which may never end"),
        (training, "holds a training graph"),
    ],
)
def test_a_graph_that_needs_more_than_its_own_weights_is_refused(bundle, change, message):
    secret = np.arange(64 * 4, dtype=np.float32).tobytes()
    (bundle.parents[1].parent / "secret").write_bytes(secret)
    replace(bundle, "encoder.onnx", changed(change))
    refused(bundle, "encoder.onnx: it", message)


def test_a_local_function_of_standard_operators_is_accepted():
    node = helper.make_node("Relu", ["x"], ["y"])
    function = helper.make_function("local", "F", ["x"], ["y"], [node], [helper.make_opsetid("", 18)])

    def change(model):
        model.functions.append(function)
        model.graph.node[1].domain = "local"

    check_graph(changed(change))


def test_a_graph_that_makes_a_gigantic_tensor_is_refused(bundle):
    def change(model):
        shape = numpy_helper.from_array(np.array([1 << 22, 1 << 22], np.int64), "gigantic")
        model.graph.initializer.append(shape)
        model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["gigantic"], ["huge"]))
        model.graph.node.insert(1, helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0))
        mean = next(node for node in model.graph.node if node.output[0] == "mean")
        mean.output[0] = "before"
        model.graph.node.append(helper.make_node("Add", ["before", "sum"], ["mean"]))

    replace(bundle, "encoder.onnx", changed(change))
    refused(bundle, "export the model again")


@pytest.mark.parametrize("graph", [encoder_graph, decoder_graph])
def test_truncated_and_corrupted_graphs_only_raise_graph_errors(graph):
    data = graph((8, 8, 1), (4,), 0)
    check_graph(data)
    rng = np.random.default_rng(0)
    for length in rng.integers(0, len(data), 200):
        _checked(data[:length])
    for _ in range(500):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 5):
            broken[at] = rng.integers(256)
        _checked(bytes(broken))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_accepted_or_raise_a_graph_error(data):
    _checked(data)


def _checked(data):
    try:
        check_graph(data)
    except GraphError as error:
        assert ";" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/b.npz", "..", "sub\\x"])
def test_file_names_cannot_leave_the_folder(bundle, name):
    edit(bundle, prior={"kind": "gmm", "file": name})
    refused(bundle)
    edit(bundle, prior=None, calibration=name)
    refused(bundle, "calibration")
    edit(bundle, calibration=None, files={name: {"sha256": "0" * 64, "bytes": 1}})
    refused(bundle, "files")


@pytest.mark.parametrize("name", ["prior.onnx", "density.onnx"])
@pytest.mark.parametrize("change", [external_in_a_constant, custom_domain, endless_loop], ids=str)
def test_the_graphs_of_a_flow_are_checked(tmp_path, name, change):
    with TemporaryDirectory() as folder:
        bundle = publish(tmp_path, "flowing", with_flow(make_draft(Path(folder))))
    open_engine(bundle)
    model = onnx.load(bundle / name)
    change(model)
    replace(bundle, name, model.SerializeToString())
    refused(bundle, name)
    (bundle / name).unlink()
    (bundle / name).symlink_to("/etc/passwd")
    refused(bundle, name, "symbolic link")


@pytest.mark.parametrize("name", ["manifest.json", "golden.npz", "decoder.onnx"])
def test_links_and_pipes_are_not_followed(bundle, tmp_path, name):
    (bundle / name).rename(tmp_path / name)
    os.symlink(tmp_path / name, bundle / name)
    refused(bundle, "is a symbolic link; a bundle holds its own files: copy the file in")
    (bundle / name).unlink()
    os.mkfifo(bundle / name)  # reading it would block
    refused(bundle, "is not a plain file")
    (bundle / name).unlink()
    (bundle / name).mkdir()
    refused(bundle, name)


def npz(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def npy(array, shape=None):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype == object)
    data = file.getvalue()
    if shape is None:
        return data
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
    )
    return header.getvalue() + array.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        npz(input=bytes(300 << 20)),  # a bomb: 300 kB
        npz(input=npy(np.zeros(4, np.uint8), shape=(1 << 50,))),
        npz(input=npy(np.zeros(4, np.uint8), shape=(1 << 62, 1 << 62))),
        npz(input=npy(np.array([{}], object))),
        npz(input=b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((("),
        npz(input=npy(np.zeros((4, 8, 8, 1), np.uint8)), mean=b""),
        b"PK\x05\x06" + bytes(18),
        b"",
    ],
    ids=["bomb", "lying", "overflowing", "pickle", "malformed", "empty member", "empty", "nothing"],
)
def test_a_malicious_npz_is_refused(bundle, data):
    replace(bundle, "golden.npz", data)
    refused(bundle, "golden.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image__height": 8192, "image__width": 8192}, "an image may have 16,777,216 values"),
        ({"latent__shape": [1 << 40]}, "latent"),
        ({"latent__shape": [1 << 13, 1 << 13]}, "latents of an image may have 16,777,216 values"),
        ({"latent__shape": [1] * 9}, "latent.shape"),
        ({"latent__shape": [5]}, "again"),
        ({"latent__kl": [1.0] * 5}, "`kl` has 5 values for 4 dimensions"),
        ({"image__width": 9}, "again"),
        ({"image__channels": 3}, "again"),
        ({"image__levels": 2}, "values that are not among the 2 levels"),
        ({"likelihood__kind": "bernoulli"}, "a bernoulli likelihood has no scale"),
        ({"likelihood__scale": None}, "a gaussian likelihood needs a scale"),
        ({"likelihood__scale": -1.0}, "likelihood.scale"),
        ({"tolerance": {"latent": 1e9}}, "tolerance.latent"),
        ({"tolerance": {"pixels": 1.0}}, "tolerance.pixels"),
        ({"labels": ["0", "0"]}, "two labels are the same"),
        ({"labels": ["x" * 10_000]}, "labels.0"),
        ({"files__encoder.onnx__bytes": 1 << 62}, "files.encoder.onnx.bytes"),
        ({"files__encoder.onnx__bytes": 10}, "has more bytes where the manifest says 10"),
    ],
)  # fmt: skip
def test_a_manifest_with_impossible_values_is_refused(bundle, changes, message):
    edit(bundle, **changes)
    refused(bundle, message)


def test_a_manifest_of_many_megabytes_is_not_read(bundle):
    with open(bundle / "manifest.json", "ab") as file:
        file.write(b" " * (5 << 20))
    refused(bundle, "too many for a manifest")


def test_the_shipped_bundles_verify():
    for bundle in (ROOT / "models").glob("*/[0-9]*"):
        read_bundle(bundle)
