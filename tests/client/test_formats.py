"""The client's table of formats is the service's."""

import io

import numpy as np
import pytest
from PIL import Image

from vaeserve.bundle.images import FORMATS
from vaeserve.client import formats


def test_the_client_has_the_formats_of_the_service():
    ours = {(each.media_type, each.suffixes) for each in formats.FORMATS}
    assert ours == {(each.media_type, each.suffixes) for each in FORMATS.values()}


@pytest.mark.parametrize(("name", "expected"), FORMATS.items())
def test_a_file_is_known_by_its_first_bytes(name, expected):
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(file, name)
    (found,) = [each.media_type for each in formats.FORMATS if file.getvalue().startswith(each.magic)]
    assert found == expected.media_type
