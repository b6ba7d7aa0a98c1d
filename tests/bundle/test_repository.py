"""Which versions are open, and that a bad one is looked at once."""

import shutil

import pytest

from tests.bundles import make_bundle
from vaeserve.bundle import repository as module
from vaeserve.bundle.files import BundleError
from vaeserve.bundle.repository import Repository


@pytest.fixture
def opened(monkeypatch):
    """The folders that were opened, as `name/version`."""
    paths, open_engine = [], module.open_engine

    def noted(path, **options):
        paths.append("/".join(path.parts[-2:]))
        return open_engine(path, **options)

    monkeypatch.setattr(module, "open_engine", noted)
    return paths


def loaded(repository):
    repository.load()
    return {name: sorted(versions) for name, versions in repository.engines.items()}


@pytest.mark.parametrize(("keep", "kept"), [(1, [4]), (2, [2, 4]), (3, [1, 2, 4]), (None, [1, 2, 4])])
def test_the_newest_good_versions_are_kept(tmp_path, keep, kept):
    for seed in range(4):
        bundle = make_bundle(tmp_path, seed=seed)
        if seed == 2:
            (bundle / "encoder.onnx").write_bytes(b"torn")
    assert loaded(Repository(tmp_path, keep=keep)) == {"tiny": kept}


def test_a_new_version_takes_the_place_of_the_old_and_what_is_open_stays_open(tmp_path, opened):
    make_bundle(tmp_path)
    make_bundle(tmp_path, "other")
    repository = Repository(tmp_path)
    assert loaded(repository) == {"tiny": [1], "other": [1]}
    engine = repository.engines["other"][1]
    make_bundle(tmp_path, seed=1)
    assert loaded(repository) == loaded(repository) == {"tiny": [2], "other": [1]}
    assert repository.engines["other"][1] is engine
    assert sorted(opened) == ["other/1", "tiny/1", "tiny/2"]


def test_a_bad_version_is_tried_once_and_again_when_it_has_changed(tmp_path, opened):
    make_bundle(tmp_path)
    bad = make_bundle(tmp_path, seed=1)
    shutil.move(bad / "decoder.onnx", tmp_path / "late.onnx")
    repository = Repository(tmp_path)
    for _ in range(3):
        assert loaded(repository) == {"tiny": [1]}
    assert opened == ["tiny/2", "tiny/1"]
    assert "decoder.onnx cannot be read" in repository.refused[str(bad)]
    shutil.move(tmp_path / "late.onnx", bad / "decoder.onnx")  # it was being copied
    assert loaded(repository) == {"tiny": [2]}
    assert repository.refused == {}


def test_a_version_that_is_removed_goes_back_to_the_one_before(tmp_path):
    make_bundle(tmp_path)
    second = make_bundle(tmp_path, seed=1)
    repository = Repository(tmp_path)
    assert loaded(repository) == {"tiny": [2]}
    shutil.rmtree(second)
    assert loaded(repository) == {"tiny": [1]}


def test_the_last_version_stays_whatever_happens_on_disk(tmp_path):
    bundle = make_bundle(tmp_path / "models")
    make_bundle(tmp_path / "models", "other")
    repository = Repository(tmp_path / "models")
    assert loaded(repository) == {"tiny": [1], "other": [1]}
    shutil.rmtree(bundle.parent)
    assert loaded(repository) == {"tiny": [1], "other": [1]}
    shutil.rmtree(tmp_path / "models")
    with pytest.raises(BundleError, match="is no folder"):
        repository.load()
    assert repository.engines["tiny"][1].manifest.reference == "tiny@1"


def test_what_was_refused_is_forgotten_with_its_folder(tmp_path):
    make_bundle(tmp_path)
    bad = make_bundle(tmp_path, seed=1)
    (bad / "golden.npz").unlink()
    repository = Repository(tmp_path)
    repository.load()
    assert list(repository.refused) == [str(bad)]
    shutil.rmtree(bad)
    repository.load()
    assert repository.refused == {}
