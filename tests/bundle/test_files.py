"""A bundle is complete or it is refused, and publishing never shows a part of one."""

import os
import shutil
import threading

import pytest

from tests.bundle.editing import edit
from tests.bundles import make_bundle
from vaeserve.bundle.files import BundleError, Draft, publish, read_bundle, versions
from vaeserve.bundle.manifest import Manifest


def test_a_published_bundle_reads_back(bundle):
    found = read_bundle(bundle)
    assert found.manifest.reference == "tiny@1"
    assert set(found.manifest.files) == {
        "encoder.onnx",
        "decoder.onnx",
        "golden.npz",
        "calibration.npz",
        "map.npz",
    }
    assert found.golden().input.shape == (4, 8, 8, 1)
    assert Manifest.model_validate_json(found.manifest.model_dump_json()) == found.manifest


@pytest.mark.parametrize("file", ["encoder.onnx", "golden.npz"])
def test_a_changed_file_is_refused(bundle, file):
    data = bytearray((bundle / file).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / file).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{file} does not match the SHA-256 .* restore the file"):
        read_bundle(bundle)
    read_bundle(bundle, verify=False)  # listing models does not read the files


def test_a_truncated_file_is_refused(bundle):
    data = (bundle / "decoder.onnx").read_bytes()
    (bundle / "decoder.onnx").write_bytes(data[:-10])
    with pytest.raises(BundleError, match="bytes where the manifest says"):
        read_bundle(bundle)


def test_a_missing_file_is_refused(bundle):
    (bundle / "golden.npz").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        read_bundle(bundle)


def test_a_file_missing_from_the_manifest_is_refused(bundle):
    files = read_bundle(bundle).manifest.model_dump()["files"]
    edit(bundle, files={name: record for name, record in files.items() if name != "encoder.onnx"})
    with pytest.raises(BundleError, match=r"encoder\.onnx is missing from `files`"):
        read_bundle(bundle)


def test_a_symbolic_link_is_refused(bundle, tmp_path):
    shutil.move(bundle / "encoder.onnx", tmp_path / "elsewhere.onnx")
    os.symlink(tmp_path / "elsewhere.onnx", bundle / "encoder.onnx")
    with pytest.raises(BundleError, match="symbolic link"):
        read_bundle(bundle)


def test_a_newer_format_asks_for_an_upgrade(bundle):
    edit(bundle, format=2, quantum=True)
    with pytest.raises(BundleError, match="made by a newer vaeserve: upgrade"):
        read_bundle(bundle)


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
def test_the_error_for_a_wrong_manifest_names_the_field(bundle, changes, message):
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=message):
        read_bundle(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"format": 1e999}'])
def test_a_manifest_that_is_not_a_json_object_is_refused(bundle, text):
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        read_bundle(bundle)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"a bundle is a folder with a manifest\.json"):
        read_bundle(tmp_path)


def test_golden_vectors_of_another_shape_are_refused(bundle, tmp_path):
    other = make_bundle(tmp_path / "other", height=4)
    draft = Draft(bundle, read_bundle(bundle).manifest)
    shutil.copy(other / "golden.npz", bundle / "golden.npz")
    with pytest.raises(
        BundleError, match=r"golden\.npz: input is uint8 \[4, 4, 8, 1\], expected uint8 \[k, 8, 8, 1\]"
    ):
        draft.bundle().golden()


def test_versions_count_up_and_earlier_ones_stay_unchanged(tmp_path):
    first = make_bundle(tmp_path)
    before = (first / "manifest.json").read_bytes()
    (tmp_path / "tiny" / "notes").mkdir()
    second = make_bundle(tmp_path, seed=1)
    assert (first.name, second.name) == ("1", "2")
    assert (first / "manifest.json").read_bytes() == before
    assert read_bundle(second).manifest.version == 2
    assert versions(tmp_path / "tiny") == [1, 2]


def test_concurrent_publishers_get_different_versions(tmp_path, draft):
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


def test_a_failure_while_publishing_leaves_nothing_behind(tmp_path, monkeypatch, draft):

    def crash(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="No space"):
        publish(tmp_path / "models", "tiny", draft)
    assert list((tmp_path / "models" / "tiny").iterdir()) == []


def test_published_files_are_readable_by_other_users(bundle):
    assert bundle.stat().st_mode & 0o055 == 0o055
    assert all(file.stat().st_mode & 0o044 for file in bundle.iterdir())
