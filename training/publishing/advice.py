"""What the figures of a model say about it, in words, each with what to try next."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.data.images import Images
from training.fit.validation import selection_score
from vaeserve.bundle.calibration import FEWEST
from vaeserve.bundle.manifest import Manifest, Metric

COLLAPSED = 0.5  # nats of rate per image: less than telling two kinds of images apart
USED = 0.1  # nats: a latent with more is in use
STILL_RISING = 0.95  # of the run, after which the best validation lies
DARK = 64  # grey levels; the brightest pixel of all images is below: a range of 12 bits or less in 16
LOOKED_AT = 1000  # images


def advice(
    manifest: Manifest, metrics: Mapping[str, Metric], data: Images, history: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """Sentences for the end of the training and for the card; none for a model without faults.

    `metrics`: those of the test images; `history`: the lines of metrics.jsonl, empty if they are not known.
    """
    config = manifest.training.config if manifest.training else {}
    found = [_run(metrics, config, history), *_latents(manifest, metrics), *_data(data)]
    return tuple(line for line in found if line)


def _run(
    metrics: Mapping[str, Metric], config: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> str | None:
    """Whether it was trained too short or too long, which matters most where PCA is better."""
    worse = ""
    if "mse_pca" in metrics and metrics["mse"].value > metrics["mse_pca"].value:
        ours, pca = metrics["mse"].value, metrics["mse_pca"].value
        worse = f"PCA with as many dimensions reconstructs better (MSE {pca:.3g}, this model {ours:.3g}). "
    steps = [line["step"] for line in history]
    best = int(np.argmax([selection_score(line["validation"]) for line in history])) if history else 0
    if history and steps[best] >= STILL_RISING * steps[-1]:
        epochs = 2 * int(config.get("epochs") or 1)
        return f"{worse}Validation still improved at the end: continue with --resume --epochs {epochs}."
    if not worse:
        return None
    if history:
        passed = f"{worse}Validation was best after {steps[best] / steps[-1]:.0%} of the run: it over-fits. "
        if not any((config.get("augmentation") or {}).values()):
            return f"{passed}Try --augment light, a smaller --latent, or more images."
        return f"{passed}Try a smaller --latent or --width, or more images."
    return f"{worse}Train longer with more --epochs."


def _latents(manifest: Manifest, metrics: Mapping[str, Metric]) -> list[str]:
    """Whether there are too few latents, or none in use."""
    size, kl = manifest.latent.size, np.array(manifest.latent.kl or ())
    if "rate" in metrics and metrics["rate"].value < COLLAPSED:
        return [
            f"The posterior collapsed: the rate is {metrics['rate'].value:.2g} nats, so the latents say "
            "nothing about an image. Try --beta 0.5, --free-bits 0.1, or more --epochs."
        ]
    if kl.size and kl.min() > USED:
        return [
            f"All {size} latent dimensions are in use, the least of them with {kl.min():.2g} nats: "
            f"--latent {2 * size} would show finer detail."
        ]
    return []


def _data(data: Images) -> list[str]:
    """What the data cannot show."""
    found = []
    if (held_out := len(data.split.validation)) < FEWEST:
        found.append(
            f"{held_out} validation images are too few for a p-value below {1 / (held_out + 1):.2g}: /score "
            f"answers `is_anomaly: null` for a smaller false_positive_rate. Train on {10 * FEWEST} images or "
            "more."
        )
    if (
        data.labels is not None
        and len(np.unique(data.labels)) > len(np.unique(data.labels[data.split.test])) == 1
    ):
        found.append("All test images have one label, so accuracies say nothing. Mix the test split.")
    rows = data.split.train[:: max(1, len(data.split.train) // LOOKED_AT)]
    if (brightest := int(data.pixels[rows].max())) < DARK:
        found.append(
            f"No pixel is brighter than {brightest} of 255: files of 12 bits in 16 lose their range. Rescale "
            "them to the full range first."
        )
    return found
