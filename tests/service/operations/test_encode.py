"""POST /encode: what `return` asks for."""

import numpy as np

from tests.arrays import NPY, npy


def test_encode_returns_how_much_each_dimension_carries(http, tiny, images):
    body = http.post("/encode?return=kl,active", content=npy(images), headers=NPY).json()
    posterior = tiny.encode(images)
    expected = 0.5 * (posterior.mean**2 + np.exp(posterior.logvar) - 1 - posterior.logvar)
    np.testing.assert_allclose(body["kl"], expected, rtol=1e-4)
    assert body["active"] == [each > 0.01 for each in tiny.manifest.latent.kl]
