"""The repository opens the newest good versions, and tries a bad one once."""

import json
import shutil

import pytest

from tests.bundles import make_bundle
from vaeserve.bundle import repository as module
from vaeserve.bundle.files import BundleError
from vaeserve.bundle.repository import Repository, find, open_engine


@pytest.fixture
def opened(monkeypatch):
    """The folders that were opened, as `name/version`."""
    paths, open_engine = [], module.open_engine

    def recording(path, **options):
        paths.append("/".join(path.parts[-2:]))
        return open_engine(path, **options)

    monkeypatch.setattr(module, "open_engine", recording)
    return paths


def loaded(repository):
    repository.load()
    return {name: sorted(versions) for name, versions in repository.engines.items()}


@pytest.mark.parametrize(("keep", "kept"), [(1, [4]), (2, [2, 4]), (3, [1, 2, 4]), (None, [1, 2, 4])])
def test_the_newest_good_versions_are_kept(tmp_path, keep, kept):
    for seed in range(4):
        bundle = make_bundle(tmp_path, seed=seed)
        if seed == 2:
            (bundle / "encoder.onnx").write_bytes(b"broken")
    assert loaded(Repository(tmp_path, keep=keep)) == {"tiny": kept}


def test_a_new_version_replaces_the_old_one_and_open_engines_are_kept(tmp_path, opened):
    make_bundle(tmp_path)
    make_bundle(tmp_path, "other")
    repository = Repository(tmp_path)
    assert loaded(repository) == {"tiny": [1], "other": [1]}
    engine = repository.engines["other"][1]
    make_bundle(tmp_path, seed=1)
    assert loaded(repository) == loaded(repository) == {"tiny": [2], "other": [1]}
    assert repository.engines["other"][1] is engine
    assert sorted(opened) == ["other/1", "tiny/1", "tiny/2"]


def test_a_bad_version_is_tried_once_and_again_after_a_change(tmp_path, opened):
    make_bundle(tmp_path)
    bad = make_bundle(tmp_path, seed=1)
    shutil.move(bad / "decoder.onnx", tmp_path / "late.onnx")
    repository = Repository(tmp_path)
    for _ in range(3):
        assert loaded(repository) == {"tiny": [1]}
    assert opened == ["tiny/2", "tiny/1"]
    assert "decoder.onnx cannot be read" in repository.refused[str(bad)]
    shutil.move(tmp_path / "late.onnx", bad / "decoder.onnx")  # the copy is complete now
    assert loaded(repository) == {"tiny": [2]}
    assert repository.refused == {}


def test_removing_a_version_reopens_the_one_before(tmp_path):
    make_bundle(tmp_path)
    second = make_bundle(tmp_path, seed=1)
    repository = Repository(tmp_path)
    assert loaded(repository) == {"tiny": [2]}
    shutil.rmtree(second)
    assert loaded(repository) == {"tiny": [1]}


def test_the_last_version_stays_open_when_its_folder_is_gone(tmp_path):
    bundle = make_bundle(tmp_path / "models")
    make_bundle(tmp_path / "models", "other")
    repository = Repository(tmp_path / "models")
    assert loaded(repository) == {"tiny": [1], "other": [1]}
    shutil.rmtree(bundle.parent)
    assert loaded(repository) == {"tiny": [1], "other": [1]}
    shutil.rmtree(tmp_path / "models")
    with pytest.raises(BundleError, match="is not a folder"):
        repository.load()
    assert repository.engines["tiny"][1].manifest.reference == "tiny@1"


def test_a_refusal_is_forgotten_when_its_folder_is_gone(tmp_path):
    make_bundle(tmp_path)
    bad = make_bundle(tmp_path, seed=1)
    (bad / "golden.npz").unlink()
    repository = Repository(tmp_path)
    repository.load()
    assert list(repository.refused) == [str(bad)]
    shutil.rmtree(bad)
    repository.load()
    assert repository.refused == {}


def test_load_opens_the_newest_version_of_each_model(tmp_path):
    make_bundle(tmp_path, "a")
    make_bundle(tmp_path, "a", seed=1)
    make_bundle(tmp_path, "b", channels=3)
    (tmp_path / "README.md").write_text("not a model")
    (tmp_path / "empty").mkdir()
    repository = Repository(tmp_path)
    repository.load()
    assert {name: list(loaded) for name, loaded in repository.engines.items()} == {"a": [2], "b": [1]}
    assert repository.refused == {}


def test_a_single_bundle_works_as_a_repository_in_any_folder(tmp_path):
    path = make_bundle(tmp_path)
    assert list(find(path)) == ["tiny"]
    renamed = path.rename(tmp_path / "downloaded")
    repository = Repository(renamed)
    repository.load()
    assert list(repository.engines) == ["tiny"]


def test_a_bundle_in_the_wrong_place_is_refused(tmp_path):
    path = make_bundle(tmp_path)
    moved = path.rename(path.parent / "3")
    with pytest.raises(BundleError, match="says it is tiny@1; put it at tiny/1"):
        open_engine(moved)


def test_a_missing_repository_is_refused(tmp_path):
    with pytest.raises(BundleError, match="is not a folder; give a model repository"):
        Repository(tmp_path / "nowhere").load()


def test_a_manifest_with_another_version_is_refused(tmp_path):
    path = make_bundle(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text()) | {"version": 9}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="says it is tiny@9"):
        open_engine(path)
