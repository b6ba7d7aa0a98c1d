"""The pictures and the model card of a bundle: what a person needs to judge a model before using it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.runtime.bundle import Manifest, Metric
from service.runtime.engine import Engine
from service.runtime.images import contact_sheet, encode_image
from training.data import Images
from training.evaluate import Evaluation

COLUMNS = 10
SHOWN_SIDE = 56  # pixels a small image is enlarged to, so that one can see it
MOST_POINTS = 5000  # on the map: more hide each other
FIGURES = {
    "elbo": ("ELBO, nats per image", "{:.2f}"),
    "distortion": ("distortion, nats per image", "{:.2f}"),
    "rate": ("rate, nats per image", "{:.2f}"),
    "bits_per_dim": ("bits per dimension", "{:.4f}"),
    "mse": ("reconstruction MSE on [0, 1]", "{:.5f}"),
    "linear_probe": ("linear probe, accuracy", "{:.4f}"),
    "knn5": ("5-NN, accuracy", "{:.4f}"),
    "active_units": ("active latent dimensions", "{:.0f}"),
    "hole": ("log p(z) of the mixture above that of N(0, I), nats", "{:.2f}"),
}

CARD = """\
# {name}

A variational autoencoder for images of {shape}: {latent} latent dimensions, trained under the prior
N(0, I), sampled from {prior};
likelihood {likelihood}. Trained by `vae-train fit --data {data} --epochs {epochs} --width {width}
--latent {latent} --seed {seed}`.

{pictures}
## Figures

On the {n_test:,} test images, through the exported graphs, with the standard error. PCA has {latent}
components too and was fitted on the same training images.

| | this model | PCA |
|---|---|---|
{figures}

Again from these files: `vae-train evaluate <this folder> --data {data}`. The ELBO takes one z per image;
a Gaussian's distortion is the probability of the pixels' grey levels (binned), not a density.

## Data

`{data}`: {n:,} images ({splits}), digest `{digest}…`. Licence: {licence}.

## Use and limits

Made to embed, reconstruct and generate images like those it was trained on. What it says about others is
not known: it shows them as something it knows, and a high likelihood does not prove that an image belongs
to the training distribution. The embedding is the posterior mean.

```bash
curl 'localhost:8000/models/{name}/sample?n=64&seed=7' -H 'Accept: image/png' -o samples.png
```
"""


def write(
    folder: Path, engine: Engine, data: Images, evaluation: Evaluation, history: Sequence[dict[str, Any]]
) -> None:
    """Write README.md and its pictures into `folder`. `history`: the lines of metrics.jsonl."""
    pictures = {
        "overview.png": overview(engine, data, evaluation),
        "samples.png": _png(contact_sheet(_enlarge(_samples(engine, 64)))),
        "map.png": latent_map(evaluation, data),
        "curves.png": curves(history) if history else None,
    }
    for name, picture in pictures.items():
        if picture is not None:
            (folder / name).write_bytes(picture)
    shown = [name for name, picture in pictures.items() if picture is not None]
    (folder / "README.md").write_text(
        card(engine.manifest, data, evaluation.metrics, shown), encoding="utf-8"
    )


def overview(engine: Engine, data: Images, evaluation: Evaluation) -> bytes:
    """One picture that says what the model does: originals, reconstructions, samples, an interpolation."""
    from matplotlib.figure import Figure

    rows = data.split.test[:COLUMNS]
    latents = evaluation.means[:COLUMNS]
    steps = np.linspace(0, 1, COLUMNS, dtype=np.float32).reshape(-1, *[1] * (latents.ndim - 1))
    strips = {
        "originals": data.pixels[rows],
        "reconstructions": engine.decode(latents),
        "samples": _samples(engine, COLUMNS),
        "interpolation": engine.decode((1 - steps) * latents[0] + steps * latents[1]),
    }
    figure = Figure(figsize=(8, 0.85 * len(strips)), layout="constrained")
    for axes, (title, images) in zip(figure.subplots(len(strips), 1), strips.items(), strict=True):
        strip = contact_sheet(_enlarge(images), columns=COLUMNS)
        axes.imshow(strip.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_ylabel(title, rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return _saved(figure)


def latent_map(evaluation: Evaluation, data: Images) -> bytes:
    """The posterior means of the test images on their first two principal components, coloured by label."""
    from matplotlib.figure import Figure

    means = evaluation.means[:MOST_POINTS].reshape(min(len(evaluation.means), MOST_POINTS), -1)
    centred = means - means.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    points = centred @ directions[:2].T if len(directions) > 1 else np.c_[centred, np.zeros(len(centred))]
    explained = np.square(singular) / np.square(singular).sum()
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    if data.labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=4, alpha=0.5)
    else:
        labels = data.labels[data.split.test][: len(points)]
        for label in np.unique(labels):
            name = data.label_names[label] if data.label_names else str(label)
            members = points[labels == label]
            axes.scatter(members[:, 0], members[:, 1], s=4, alpha=0.5, label=name)
        if len(np.unique(labels)) <= 20:
            axes.legend(markerscale=3, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(
        title="posterior means of the test images",
        xlabel=f"principal component 1 ({explained[0]:.0%} of the variance)",
        ylabel=f"principal component 2 ({explained[1] if len(explained) > 1 else 0:.0%})",
    )
    return _saved(figure)


def curves(history: Sequence[dict[str, Any]]) -> bytes:
    """Distortion and rate, on train and on validation, over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    epochs = [line["epoch"] for line in history]
    for axes, term in zip(figure.subplots(1, 2), ("distortion", "rate"), strict=True):
        for part in ("train", "validation"):
            axes.plot(epochs, [line[part][term] for line in history], label=part)
        axes.set(title=f"{term}, nats per image", xlabel="epoch")
    axes.legend()
    return _saved(figure)


def card(manifest: Manifest, data: Images, metrics: dict[str, Metric], pictures: Sequence[str]) -> str:
    """The model card, Markdown."""
    image, latent, likelihood = manifest.image, manifest.latent, manifest.likelihood
    config = manifest.training.config if manifest.training else {}
    prior = "a Gaussian mixture that was fitted to its posterior afterwards"
    if manifest.prior is None or manifest.prior.kind == "normal":
        prior = "the same"
    kind = "unknown" if likelihood is None else likelihood.kind
    scale = f" (σ = {likelihood.scale:.4f})" if likelihood and likelihood.scale else ""
    return CARD.format(
        name=manifest.name,
        shape=f"{image.height}×{image.width}×{image.channels}",
        latent=latent.size,
        likelihood=kind + scale,
        prior=prior,
        data=data.name,
        epochs=config.get("epochs"),
        width=config.get("width"),
        seed=config.get("seed"),
        pictures="\n".join(f"![{Path(name).stem}]({name})\n" for name in pictures),
        n_test=metrics["elbo"].n,
        figures="\n".join(_figure_rows(metrics)),
        n=len(data.pixels),
        splits=", ".join(
            f"{len(getattr(data.split, part)):,} {part}" for part in ("train", "validation", "test")
        ),
        digest=data.digest[:16],
        licence=data.licence,
    )


def _figure_rows(metrics: dict[str, Metric]) -> list[str]:
    rows = []
    for key, (title, form) in FIGURES.items():
        if key in metrics:
            beside = metrics.get(f"{key}_pca")
            rows.append(
                f"| {title} | {_figure(metrics[key], form)} | {_figure(beside, form) if beside else '–'} |"
            )
    return rows


def _figure(metric: Metric, form: str) -> str:
    return form.format(metric.value) + (f" ± {form.format(metric.se)}" if metric.se is not None else "")


def _samples(engine: Engine, n: int) -> NDArray[np.uint8]:
    return engine.decode(engine.prior.sample(seed=0, rows=range(n)))


def _enlarge(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    times = max(1, SHOWN_SIDE // max(images.shape[1:3]))
    return images.repeat(times, axis=1).repeat(times, axis=2)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    return encode_image(pixels)


def _saved(figure: Any) -> bytes:
    import io

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
