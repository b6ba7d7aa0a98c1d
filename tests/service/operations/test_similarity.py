"""POST /similarity: the measures are those of their definitions, and the nearest are nearest."""

import numpy as np
import pytest

from tests.arrays import NPY, npy


@pytest.fixture(scope="module")
def posterior(tiny, images):
    mean, logvar = tiny.encode(images)
    return mean.astype(float), np.exp(logvar.astype(float))


def similarity(http, images, **query):
    answer = http.post("/similarity", params=query, content=npy(images), headers=NPY)
    assert answer.status_code == 200, answer.text
    return answer.json()


def kl(a, b, mean, variance):
    """Of two Gaussians with diagonal covariances, in nats."""
    ratio = variance[a] / variance[b]
    return 0.5 * (ratio + (mean[a] - mean[b]) ** 2 / variance[b] - 1 - np.log(ratio)).sum()


def test_the_measures_are_those_of_their_definitions(http, images, posterior):
    mean, variance = posterior
    cosine = np.array(similarity(http, images)["matrix"])
    mahalanobis = np.array(similarity(http, images, metric="mahalanobis")["matrix"])
    divergence = np.array(similarity(http, images, metric="symmetric_kl")["matrix"])
    for a in range(5):
        for b in range(5):
            expected = mean[a] @ mean[b] / np.linalg.norm(mean[a]) / np.linalg.norm(mean[b])
            assert cosine[a, b] == pytest.approx(expected, abs=1e-5)
            average = (variance[a] + variance[b]) / 2
            assert mahalanobis[a, b] == pytest.approx(
                np.sqrt(((mean[a] - mean[b]) ** 2 / average).sum()), rel=1e-4
            )
            symmetric = (kl(a, b, mean, variance) + kl(b, a, mean, variance)) / 2
            assert divergence[a, b] == pytest.approx(symmetric, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "mahalanobis", "symmetric_kl"])
def test_the_copy_of_an_image_is_the_nearest_to_it(http, images, metric):
    found = similarity(http, np.concatenate([images, images]), metric=metric, top=2)
    assert [first for first, _ in found["nearest"]] == [*range(5, 10), *range(5)]
    matrix = np.array(found["matrix"])
    np.testing.assert_array_equal(matrix, matrix.T)
    for row, (nearest, values) in enumerate(zip(found["nearest"], found["nearest_values"], strict=True)):
        assert values == [matrix[row, each] for each in nearest]
        assert row not in nearest
