"""Arrays as the bodies of requests and answers have them."""

import io

import numpy as np

NPY = {"Content-Type": "application/x-npy"}
AS_NPY = {"Accept": "application/x-npy"}
AS_NPZ = {"Accept": "application/x-npz"}
AS_PNG = {"Accept": "image/png"}


def npy(array):
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def from_npz(answer):
    """The arrays of an answer that succeeded, by name."""
    assert answer.status_code == 200, answer.text
    with np.load(io.BytesIO(answer.content)) as archive:
        return dict(archive)


def refused(answer, status, words):
    """Assert that an answer is a problem with this status and these words."""
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]
