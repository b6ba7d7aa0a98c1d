"""Advice: each fault of a model or its data is named, with the flag to try, and a good model has none."""

import dataclasses

import numpy as np
import pytest

from training.data.images import from_arrays
from training.publishing.advice import advice
from vaeserve.bundle.manifest import LatentSpec, Metric

GOOD = {"mse": 0.01, "mse_pca": 0.02, "rate": 20.0}


@pytest.fixture(scope="module")
def images():
    """3,000 images of two classes, enough to be without advice."""
    rng = np.random.default_rng(0)
    return from_arrays(
        "many", rng.integers(0, 256, (3000, 8, 8, 1), dtype=np.uint8), np.arange(3000) % 2, ("a", "b")
    )


@pytest.fixture
def said(exported, images):
    manifest = exported.draft.manifest

    def said(data=images, kl=(2.0, 0.01), best=5, augmentation=None, **changes):
        config = {"epochs": 7, "augmentation": augmentation}
        training = manifest.training.model_copy(update={"config": config})
        latent = LatentSpec(shape=(len(kl),), kl=kl)
        metrics = {name: Metric(value=value, n=100) for name, value in (GOOD | changes).items()}
        history = [{"step": step, "validation": {"elbo": -abs(step - best)}} for step in range(1, 11)]
        changed = manifest.model_copy(update={"latent": latent, "training": training})
        return advice(changed, metrics, data, history)

    return said


def test_a_good_model_needs_none(said):
    assert said() == ()


def test_pca_that_is_better_is_said_with_the_cause(said):
    (early,) = said(mse=0.03)
    assert "PCA with as many dimensions reconstructs better (MSE 0.02, this model 0.03)" in early
    assert "best after 50% of the run: it over-fits. Try --augment light" in early
    (augmented,) = said(mse=0.03, augmentation={"shift": 0.1})
    assert "Try a smaller --latent or --width" in augmented
    (late,) = said(mse=0.03, best=10)
    assert "PCA" in late
    assert late.endswith("continue with --resume --epochs 14.")


def test_a_run_that_was_too_short_is_said_without_pca_too(said):
    assert said(best=10) == ("Validation still improved at the end: continue with --resume --epochs 14.",)


def test_too_few_latents_and_collapsed_ones(said):
    assert said(kl=(2.0, 0.3)) == (
        "All 2 latent dimensions are in use, the least of them with 0.3 nats: "
        "--latent 4 would show finer detail.",
    )
    (collapsed,) = said(kl=(0.01, 0.0), rate=0.02)
    assert "collapsed: the rate is 0.02 nats" in collapsed
    assert "--beta 0.5" in collapsed


def test_a_set_too_small_for_p_values(said, digits):
    few = from_arrays("few", digits.pixels[:400], digits.labels[:400], digits.label_names)
    n = len(few.split.validation)
    assert said(few)[0].startswith(
        f"{n} validation images are too few for a p-value below {1 / (n + 1):.2g}: "
    )


def test_a_test_split_of_one_class_and_a_squeezed_range(said, images):
    labels = np.zeros(len(images.pixels), np.int64)
    labels[images.split.train[:50]] = 1
    (one,) = said(dataclasses.replace(images, labels=labels))
    assert "All test images have one label" in one
    (dark,) = said(dataclasses.replace(images, pixels=images.pixels // 16))
    assert "No pixel is brighter than 15 of 255" in dark
