"""Writes the model card, README.md of a bundle: what a person must know before using a model."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.config import TrainConfig, flags
from training.data.images import Images
from training.data.sources import SETS
from training.model.likelihoods import LIKELIHOODS
from vaeserve.bundle.manifest import Manifest, Metric

FIGURES = {
    "elbo": ("ELBO, nats per image", "{:.2f}"),
    "elbo_prior": ("ELBO under the served prior, nats per image", "{:.2f}"),
    "iwae": ("importance-weighted bound under N(0, I), nats per image", "{:.2f}"),
    "iwae_prior": ("importance-weighted bound under the served prior, nats per image", "{:.2f}"),
    "distortion": ("distortion, nats per image", "{:.2f}"),
    "rate": ("rate, nats per image", "{:.2f}"),
    "bits_per_dim": ("bits per dimension", "{:.4f}"),
    "mse": ("reconstruction MSE on [0, 1]", "{:.5f}"),
    "psnr": ("reconstruction PSNR, dB", "{:.2f}"),
    "ssim": ("reconstruction SSIM", "{:.4f}"),
    "linear_probe": ("linear probe, accuracy", "{:.4f}"),
    "knn5": ("5-NN, accuracy", "{:.4f}"),
    "active_units": ("active latent dimensions", "{:.0f}"),
    "prior_gap": ("log p(z) under the served prior minus that under N(0, I), nats", "{:.2f}"),
}
SAMPLES = {
    "frechet": ("Fréchet distance", "{:.3f}"),
    "kernel": ("kernel distance", "{:.4f}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "density": ("density", "{:.3f}"),
    "coverage": ("coverage", "{:.3f}"),
    "nearest": ("distance to the nearest training image, RMS on [0, 1]", "{:.3f}"),
    "duplicates": ("duplicates", "{:.4f}"),
}
SAMPLE_COLUMNS = {
    "": "samples",
    "_normal": "samples of N(0, I)",
    "_reconstructions": "reconstructions",
    "_restored": "reconstructed training images",
    "_real": "real images",
}
COLUMNS = {"": "this model", "_pca": "PCA", "_pixels": "raw pixels", "_random": "untrained encoder"}
# They do not change the model; or `fit_command` writes them itself.
NOT_REPEATED = frozenset({"data", "name", "memory_limit", "device", "compile"})
CAPTIONS = {
    "overview": "Originals, reconstructions, samples, and an interpolation between two images.",
    "reconstructions": "Test images, each above its reconstruction from the posterior mean.",
    "samples": "64 samples from the served prior (seed 0).",
    "labels": "Samples of each label, from a mixture fitted to its images alone (`/sample?label=`).",
    "interpolations": "Linear interpolations between the latents of two images. The originals are at the "
    "ends.",
    "traversals": "The latent dimensions with the highest KL, each varied alone from -3 to 3.",
    "neighbours": "Samples, each with its five nearest training images. A model that has memorised the "
    "training images would show the same image twice.",
    "map": "Latents in two dimensions (t-SNE). Close points are close in latent space; long distances "
    "mean little.",
    "kl": "KL divergence of each latent dimension: how much it tells about an image.",
    "curves": "Training curves. The dotted line marks the best epoch on validation. The terms of a "
    "Gaussian are log densities of pixels in [0, 1] here, and log probabilities of grey levels in the table "
    "of figures; the two differ by about a constant.",
}

TRAINED = {
    "normal": "N(0, I)",
    "flow": "flow (RealNVP, arXiv 1905.13452), trained jointly",
    "mixture": "mixture of Gaussians, trained jointly",
}
BERNOULLI = (
    "The model reads pixels of 0\nor 255, so the caller binarises. "
    "Grey test images were binarised once, x ~ Bernoulli(grey)."
)
BINNED = "The distortion is computed\nfrom the probability of the pixels' grey levels, not from a density."

SAMPLE_FIGURES = """\
## Samples

The same number of images of each kind, compared with the test images, at temperature 1. Distances and
neighbours are measured in the features of a small classifier of the training labels (test accuracy
{accuracy:.3f}), independent of this model. They compare models of the same data; the Fréchet distance is not
an FID. Real images are training images; for the distance to the nearest training image they are test images.
A duplicate is closer to its nearest neighbour of the same kind than 99 % of the test images are to theirs.
Reconstructed training images are the practical limit for samples. Reconstructions of the test images are not:
pair by pair, they are closer to the test images than other real images are.

{table}

"""

INT8 = """\
## Compared with {reference}

This is {reference} in eight-bit integers, except for the layers that give the outputs. Prior, σ and training
are unchanged; the weights were not trained again.

{table}

The graphs are {size:.2f} times the size. Speed relative to {reference}, on one thread of the CPU that made
this model, measured alternately: {speeds}. A CPU without integer instructions (AVX-VNNI, AVX512-VNNI, Arm's
dot product) gains less or nothing: measure on yours. The golden vectors are those of the quantized graphs.

"""

CARD = """\
# {name}

A variational autoencoder for images of {shape}, with {latent} latent dimensions.

| | |
|---|---|
| prior in training | {trained} |
| prior in sampling | {prior} |
| likelihood | {likelihood} |

{overview}
{comparison}## Figures

Measured on the test images, through the exported graphs, with the standard error. PCA has {latent} components
too. PCA, probes and neighbours were fitted to {fitted} training images, and the penalty of the probes was
chosen on validation. The untrained encoder is this network before its first step.

{figures}

Distortion, ELBO and bits per dimension use one z per image. {kind}
SSIM is that of Wang et al. (11×11 Gaussian window, σ = 1.5{window}). To compute the figures again:

```bash
vae-train evaluate <this folder> --data {data}{evaluate}
```

{samples}{advice}## Training

```bash
{command}
```

{code}; {libraries}.

## Data

`{data}`: {n:,} images ({splits}), digest `{digest}…`{skipped}. Licence: {licence}.

## Use and limits

This model embeds, reconstructs and generates images like those it was trained on. Use it to explore, search
and group a collection, to find outliers, and to generate similar images. The embedding is the posterior mean.

Its output for other images is not known: it reconstructs them as something it knows, and a high likelihood
does not prove that an image belongs to the training distribution. Samples reproduce the biases of the data.
The model is not meant for decisions about people.

```bash
curl 'localhost:8000/models/{name}/sample?n=64&seed=7' -H 'Accept: image/png' -o samples.png
```

{missing}## Pictures

{pictures}"""


def card(
    manifest: Manifest,
    data: Images,
    metrics: Mapping[str, Metric],
    pictures: Sequence[str],
    comparison: str = "",
    advice: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> str:
    """The card in Markdown. `pictures`: files in the same folder; `comparison`: a section put first;
    `advice`: a line each; `missing`: a line for each part that could not be made."""
    image, latent, likelihood = manifest.image, manifest.latent, manifest.likelihood
    config = manifest.training.config if manifest.training else {}
    prior = "mixture of Gaussians, fitted to the posterior after training"
    if manifest.prior is None or manifest.prior.kind == "normal":
        prior = "the same"
    flow = manifest.prior is not None and manifest.prior.kind == "flow"
    if flow:
        prior = "the same; `/sample?prior=mixture` uses a mixture fitted after training"
    kind = "unknown" if likelihood is None else likelihood.kind
    symbol = LIKELIHOODS[kind].symbol if kind in LIKELIHOODS else "σ"
    scale = f" ({symbol} = {likelihood.scale:.4f})" if likelihood and likelihood.scale else ""
    source = config.get("data", data.name)
    iwae, side = metrics.get("iwae"), min(image.height, image.width)
    return CARD.format(
        name=manifest.name,
        shape="×".join(map(str, image.shape)),
        latent=latent.size,
        likelihood=kind + scale,
        kind=BERNOULLI if kind in LIKELIHOODS and LIKELIHOODS[kind].binary else BINNED,
        trained=TRAINED["flow" if flow else config.get("prior", "normal")],
        prior=prior,
        data=source,
        command=fit_command(config, source if source in SETS else f"path/to/{source}"),
        code=manifest.training.code if manifest.training else "",
        libraries=", ".join(f"{name} {version}" for name, version in manifest.libraries.items()),
        comparison=comparison,
        overview=_pictures([name for name in pictures if stem(name) == "overview"]),
        pictures=_pictures([name for name in pictures if stem(name) != "overview"]),
        fitted=f"{metrics['fitted'].n:,}" if "fitted" in metrics else "the",
        figures=_markdown(*figure_table(metrics)),
        samples=_samples(metrics),
        advice=_list("Advice", advice),
        missing=_list("Missing", missing),
        window=""
        if side >= 11
        else f"; here {side - 1 + side % 2}×{side - 1 + side % 2}, the largest that fits",
        evaluate=f" --iwae-k {iwae.k} --iwae-n {iwae.n}" if iwae else "",
        n=len(data.pixels),
        splits=splits(data),
        digest=data.digest[:16],
        skipped=f", {len(data.skipped):,} other files skipped" if data.skipped else "",
        licence=data.licence,
    )


def compare_with_float32(
    exact: Manifest, metrics: Mapping[str, Metric], size: float, faster: Mapping[str, float]
) -> str:
    """The section of the card that compares a quantized model with the original, Markdown.

    `size`: of its graphs over the original's; `faster`: the original's time over its time, by operation.
    """
    rows = [
        [FIGURES[key][0], *(_figure(each[key], FIGURES[key][1]) for each in (metrics, exact.metrics))]
        for key in ("elbo", "mse", "linear_probe", "knn5")
        if key in metrics and key in exact.metrics
    ]
    speeds = "; ".join(f"{what}: {ratio:.2f}" for what, ratio in faster.items())
    return INT8.format(
        reference=exact.reference,
        table=_markdown(["", "int8", exact.reference], rows),
        size=size,
        speeds=speeds,
    )


def splits(data: Images) -> str:
    """The number of images in each part, in words."""
    return ", ".join(f"{len(getattr(data.split, part)):,} {part}" for part in ("train", "validation", "test"))


def fit_command(config: Mapping[str, Any], source: str) -> str:
    """The command that trains the model again from the data at `source`, with all but default settings."""
    words = [f"vae-train fit --data {shlex.quote(source)}"]
    if config.get("name") not in (None, Path(source).stem):
        words.append(f"--name {config['name']}")
    defaults = TrainConfig().to_dict()
    for field in flags():
        value = config.get(field)
        if field not in NOT_REPEATED and value not in (None, defaults[field]):
            written = "x".join(map(str, value)) if isinstance(value, list) else value
            words.append(f"--{field.replace('_', '-')} {written}")
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > 96:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


def figure_table(
    metrics: Mapping[str, Metric],
    figures: Mapping[str, tuple[str, str]] = FIGURES,
    others: Mapping[str, str] = COLUMNS,
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table: the figure, this model, each of `others`, and the number of images."""
    present = [suffix for suffix in others if any(f"{key}{suffix}" in metrics for key in figures)]
    rows = []
    for key, (title, form) in figures.items():
        if key in metrics:
            found = [metrics.get(f"{key}{suffix}") for suffix in present]
            count = f"N = {metrics[key].n:,}" + (f", k = {metrics[key].k:,}" if metrics[key].k else "")
            rows.append([title, *(_figure(metric, form) if metric else "–" for metric in found), count])
    return ["", *(others[suffix] for suffix in present), "of"], rows


def sample_table(metrics: Mapping[str, Metric]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of samples, with no rows where it has no figures."""
    return figure_table(metrics, SAMPLES, SAMPLE_COLUMNS)


def _list(heading: str, lines: Sequence[str]) -> str:
    return f"## {heading}\n\n" + "".join(f"- {line}\n" for line in lines) + "\n" if lines else ""


def _samples(metrics: Mapping[str, Metric]) -> str:
    if "classifier" not in metrics:
        return ""
    table = _markdown(*sample_table(metrics))
    return SAMPLE_FIGURES.format(accuracy=metrics["classifier"].value, table=table)


def _figure(metric: Metric, form: str) -> str:
    return form.format(metric.value) + (f" ± {form.format(metric.se)}" if metric.se is not None else "")


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _pictures(names: Sequence[str]) -> str:
    return "\n".join(f"{CAPTIONS[stem(name)]}\n\n![{stem(name)}]({name})\n" for name in names)


def stem(name: str) -> str:
    """The name of a picture without .png or .webp."""
    return name.partition(".")[0]
