"""A bundle is whole or it is refused, and publishing never shows half of one."""

import json
import os
import shutil
import threading

import pytest
from pydantic import ValidationError

from tests.bundles import make_bundle, make_draft
from vaeserve.bundle import files as module
from vaeserve.bundle.files import BundleError, publish, read_bundle, versions
from vaeserve.bundle.manifest import Manifest


@pytest.fixture
def published(tmp_path):
    return make_bundle(tmp_path / "models")


def edit(path, **changes):
    manifest = path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


def test_a_published_bundle_reads_back(published):
    bundle = read_bundle(published)
    assert bundle.manifest.reference == "tiny@1"
    assert set(bundle.manifest.files) == {
        "encoder.onnx",
        "decoder.onnx",
        "golden.npz",
        "calibration.npz",
        "map.npz",
    }
    assert bundle.golden().input.shape == (4, 8, 8, 1)
    assert Manifest.model_validate_json(bundle.manifest.model_dump_json()) == bundle.manifest


def test_the_example_of_the_contract_is_a_manifest(published):
    example = {
        "format": 1, "name": "mnist", "version": 1, "created": "2026-11-22T12:00:00Z",
        "image": {"height": 28, "width": 28, "channels": 1, "levels": 256, "fit": "contain"},
        "latent": {"shape": [32], "kl": [2.1, 0.9]},
        "likelihood": {"kind": "gaussian", "scale": 0.07},
        "prior": {"kind": "normal", "file": None}, "labels": ["0", "1"],
        "calibration": None, "map": None,
        "metrics": {"elbo": {"value": 0.0, "n": 10000, "seed": 0}},
        "training": {"config": {}, "data": {"digest": "…", "n": 60000}, "code": "…"},
        "tolerance": {"latent": 1e-3, "pixels": 1e-3, "levels": 1},
        "files": {"encoder.onnx": {"sha256": "0" * 64, "bytes": 1}},
        "libraries": {"torch": "2.13.0", "onnxruntime": "1.32.0"},
    }  # fmt: skip
    assert Manifest.model_validate(example).reference == "mnist@1"
    nothing = dict.fromkeys(["likelihood", "prior", "labels", "calibration", "map"])
    assert Manifest.model_validate(example | nothing).prior is None


@pytest.mark.parametrize("name", ["stats", "Mnist", "", "a/b", "..", "x" * 65, "-a", "mnist\n"])
def test_names_that_would_not_survive_a_url_or_a_path_are_refused(published, name):
    record = json.loads((published / "manifest.json").read_text())
    with pytest.raises(ValidationError):
        Manifest.model_validate(record | {"name": name})


@pytest.mark.parametrize("file", ["encoder.onnx", "golden.npz"])
def test_a_changed_file_is_refused(published, file):
    data = bytearray((published / file).read_bytes())
    data[len(data) // 2] ^= 1
    (published / file).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{file} has another SHA-256 .* restore the file"):
        read_bundle(published)
    read_bundle(published, verify=False)  # what only lists models need not read them all


def test_a_torn_file_is_refused(published):
    data = (published / "decoder.onnx").read_bytes()
    (published / "decoder.onnx").write_bytes(data[:-10])
    with pytest.raises(BundleError, match="bytes where the manifest says"):
        read_bundle(published)


def test_a_missing_file_is_refused(published):
    (published / "golden.npz").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        read_bundle(published)


def test_a_file_that_the_manifest_does_not_list_is_refused(published):
    files = json.loads((published / "manifest.json").read_text())["files"]
    files.pop("encoder.onnx")
    edit(published, files=files)
    with pytest.raises(BundleError, match=r"encoder\.onnx is missing from `files`"):
        read_bundle(published)


def test_a_symbolic_link_is_refused(published, tmp_path):
    shutil.move(published / "encoder.onnx", tmp_path / "elsewhere.onnx")
    os.symlink(tmp_path / "elsewhere.onnx", published / "encoder.onnx")
    with pytest.raises(BundleError, match="symbolic link"):
        read_bundle(published)


def test_a_newer_format_asks_for_an_upgrade(published):
    edit(published, format=2, quantum=True)
    with pytest.raises(BundleError, match="made by a newer vaeserve: upgrade"):
        read_bundle(published)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"image": {"height": 8, "width": 8, "channels": 2}}, "image.channels"),
        ({"files": {"../encoder.onnx": {"sha256": "0" * 64, "bytes": 1}}}, "files"),
        ({"version": 0}, "version"),
        ({"latent": {"shape": []}}, "latent.shape"),
    ],
)
def test_a_manifest_that_is_wrong_says_where(published, changes, message):
    edit(published, **changes)
    with pytest.raises(BundleError, match=message):
        read_bundle(published)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"format": 1e999}'])
def test_a_manifest_that_is_no_json_object_is_refused(published, text):
    (published / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        read_bundle(published)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"a bundle is a folder with a manifest\.json"):
        read_bundle(tmp_path)


def test_golden_vectors_of_another_shape_are_refused(published, tmp_path):
    other = make_bundle(tmp_path / "other", height=4)
    draft = module.Draft(published, read_bundle(published).manifest)
    shutil.copy(other / "golden.npz", published / "golden.npz")
    with pytest.raises(
        BundleError, match=r"golden\.npz: input is uint8 \[4, 4, 8, 1\], expected uint8 \[k, 8, 8, 1\]"
    ):
        draft.bundle().golden()


def test_versions_count_up_and_published_ones_stay(tmp_path):
    first = make_bundle(tmp_path)
    before = (first / "manifest.json").read_bytes()
    (tmp_path / "tiny" / "notes").mkdir()
    second = make_bundle(tmp_path, seed=1)
    assert (first.name, second.name) == ("1", "2")
    assert (first / "manifest.json").read_bytes() == before
    assert read_bundle(second).manifest.version == 2
    assert versions(tmp_path / "tiny") == [1, 2]


def test_publishers_at_the_same_time_get_different_versions(tmp_path):
    folder = tmp_path / "draft"
    folder.mkdir()
    draft = make_draft(folder)
    paths = []
    threads = [
        threading.Thread(target=lambda: paths.append(publish(tmp_path / "models", "tiny", draft)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in paths) == list("123456")
    assert all(read_bundle(path).manifest.version == int(path.name) for path in paths)


def test_a_crash_while_publishing_leaves_nothing_visible(tmp_path, monkeypatch):
    folder = tmp_path / "draft"
    folder.mkdir()
    draft = make_draft(folder)

    def crash(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", crash)
    with pytest.raises(OSError, match="No space"):
        publish(tmp_path / "models", "tiny", draft)
    assert list((tmp_path / "models" / "tiny").iterdir()) == []


def test_published_files_can_be_read_by_the_service_s_user(published):
    assert published.stat().st_mode & 0o055 == 0o055
    assert all(file.stat().st_mode & 0o044 for file in published.iterdir())
