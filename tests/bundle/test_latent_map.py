"""Maps whose arrays do not fit the model are refused."""

import numpy as np
import pytest

from tests.bundle.editing import with_arrays
from vaeserve.bundle.files import BundleError
from vaeserve.bundle.latent_map import read_map


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"components": np.zeros((3, 4), np.float32)}, "components"),
        ({"labels": np.full(40, 2, np.int16)}, "labels must be below 2, their number"),
        ({"thumbnails": np.zeros((40, 0, 8, 1), np.uint8)}, "a map has 1 to 4096 points"),
    ],
)
def test_a_bad_map_is_refused(tmp_path, change, words):
    with pytest.raises(BundleError, match=rf"{words}.*publish the model again"):
        read_map(with_arrays(tmp_path, "map.npz", **change))
