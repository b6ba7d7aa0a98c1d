import pytest

from tests.bundles import make_bundle, make_draft


@pytest.fixture
def draft(tmp_path):
    folder = tmp_path / "draft"
    folder.mkdir()
    return make_draft(folder)


@pytest.fixture
def bundle(tmp_path):
    """The folder of a published bundle."""
    return make_bundle(tmp_path / "models")
