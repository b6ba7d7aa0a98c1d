"""The model card, README.md of a bundle: what a person needs to judge a model before using it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.data.images import Images
from training.data.sources import SETS
from training.model.likelihoods import LIKELIHOODS
from vaeserve.bundle.manifest import Manifest, Metric

FIGURES = {
    "elbo": ("ELBO, nats per image", "{:.2f}"),
    "elbo_prior": ("the same under the served prior", "{:.2f}"),
    "iwae": ("importance-weighted bound under N(0, I), nats per image", "{:.2f}"),
    "iwae_prior": ("the same under the served prior", "{:.2f}"),
    "distortion": ("distortion, nats per image", "{:.2f}"),
    "rate": ("rate, nats per image", "{:.2f}"),
    "bits_per_dim": ("bits per dimension", "{:.4f}"),
    "mse": ("reconstruction MSE on [0, 1]", "{:.5f}"),
    "psnr": ("reconstruction PSNR, dB", "{:.2f}"),
    "ssim": ("reconstruction SSIM", "{:.4f}"),
    "linear_probe": ("linear probe, accuracy", "{:.4f}"),
    "knn5": ("5-NN, accuracy", "{:.4f}"),
    "active_units": ("active latent dimensions", "{:.0f}"),
    "prior_gap": ("log p(z) of the served prior above that of N(0, I), nats", "{:.2f}"),
}
SAMPLES = {
    "frechet": ("Fréchet distance", "{:.3f}"),
    "kernel": ("kernel distance", "{:.4f}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "density": ("density", "{:.3f}"),
    "coverage": ("coverage", "{:.3f}"),
    "nearest": ("to the nearest training image, RMS on [0, 1]", "{:.3f}"),
    "duplicates": ("duplicates", "{:.4f}"),
}
BESIDE_SAMPLES = {
    "": "samples",
    "_normal": "samples of N(0, I)",
    "_reconstructions": "reconstructions",
    "_restored": "reconstructed training images",
    "_real": "real images",
}
BESIDE = {"": "this model", "_pca": "PCA", "_pixels": "raw pixels", "_random": "untrained encoder"}
FLAGS = (
    "epochs",
    "batch",
    "lr",
    "seed",
    "latent",
    "width",
    "activation",
    "channels",
    "fit",
    "likelihood",
    "beta",
)
LATER = {"prior": "normal", "iwae": 1}  # flags that older versions do not know
CAPTIONS = {
    "overview.png": "Originals, their reconstructions, samples, and the way from one image to another.",
    "reconstructions.png": "Test images, and below each what its latents are decoded to.",
    "samples.png": "64 samples from the prior that is served (seed 0).",
    "labels.png": "Samples of each label, from a mixture fitted to its images alone (`/sample?label=`).",
    "interpolations.png": "Straight ways between the latents of two images, which stand at the ends.",
    "traversals.png": "The latent dimensions with the highest KL, each moved alone from -3 to 3.",
    "neighbours.png": "Samples, and beside each the five training images nearest to it: a model that "
    "only remembered would show the same image twice.",
    "map.png": "Latents in two dimensions (t-SNE): near stays near, far means little.",
    "kl.png": "How much each latent dimension says about an image.",
    "curves.png": "The training; the dotted line is the best epoch on validation. A Gaussian's terms are "
    "here log densities of pixels in [0, 1], those among the figures log probabilities of grey levels: they "
    "differ by about a constant.",
}

TRAINED = {
    "normal": "N(0, I)",
    "flow": "of a flow (RealNVP, 1905.13452) that was trained with it",
    "mixture": "of a mixture of Gaussians that was trained with it",
}
BERNOULLI = (
    "it reads pixels of 0\nor 255: the caller binarises. "
    "Grey test images were binarised once, x ~ Bernoulli(grey)."
)
BINNED = "the distortion is the probability of\nthe pixels' grey levels (binned), not a density."

SAMPLE_FIGURES = """\
## Samples

As many images of each kind beside the test images, at temperature 1. Distances and neighbours are taken in
the features of a small classifier of the training labels (test accuracy {accuracy:.3f}), which knows nothing
of this model: they compare models of these data, and are no FID. Real images are training images, for the
distance to the nearest training image test images; a duplicate is nearer to another one than 99 % of the
test images are to theirs. What samples can hardly beat are reconstructed training images: those of the test
images lie nearer to them, pair by pair, than other real images do.

{table}

"""

INT8 = """\
## Beside {reference}

This is {reference} in eight-bit integers: convolutions and dense layers, but not the layers that give the
outputs. Prior, σ and training are that model's; the weights were not trained on.

{table}

The graphs have {size:.2f} of its bytes. How many times as fast they are on one thread of the CPU where this
was made, both taken in turn: {speeds}. A CPU without integer instructions (AVX-VNNI, AVX512-VNNI, Arm's dot
product) gains less, or nothing: measure on yours. The golden vectors are those of the quantized graphs.
"""

CARD = """\
# {name}

A variational autoencoder for images of {shape}: {latent} latent dimensions, trained under the prior
{trained}, sampled from {prior};
likelihood {likelihood}.

{overview}
## Figures

On the test images, through the exported graphs, with the standard error. PCA has {latent} components too;
PCA, probes and neighbours were fitted on {fitted} training images, the probes' penalty chosen on
validation. The untrained encoder is this network before its first step.

{figures}

Distortion, ELBO and bits take one z per image; {kind}
SSIM is Wang et al.'s (11×11 Gaussian window, σ = 1.5{window}). Again from these files:

```bash
vae-train evaluate <this folder> --data {data}{evaluate}
```

{samples}## Training

```bash
{command}
```

{code}; {libraries}.

## Data

`{data}`: {n:,} images ({splits}), digest `{digest}…`{skipped}. Licence: {licence}.

## Use and limits

Made to embed, reconstruct and generate images like those it was trained on: to look at a collection, to
search and group it, to find what is unusual in it, to draw more of its kind. The embedding is the posterior
mean. What the model says about other images is not known: it shows them as something it knows, and a high
likelihood does not prove that an image belongs to the training distribution. Samples repeat whatever is
one-sided in the data. It is not made for decisions about people.

```bash
curl 'localhost:8000/models/{name}/sample?n=64&seed=7' -H 'Accept: image/png' -o samples.png
```

## Pictures

{pictures}"""


def card(manifest: Manifest, data: Images, metrics: Mapping[str, Metric], pictures: Sequence[str]) -> str:
    """The card, Markdown. `pictures`: names of files beside it."""
    image, latent, likelihood = manifest.image, manifest.latent, manifest.likelihood
    config = manifest.training.config if manifest.training else {}
    prior = "a Gaussian mixture that was fitted to its posterior afterwards"
    if manifest.prior is None or manifest.prior.kind == "normal":
        prior = "the same"
    flow = manifest.prior is not None and manifest.prior.kind == "flow"
    if flow:
        prior = "the same (`/sample?prior=mixture`: one that was fitted afterwards)"
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
        command=fit_command(config, source if source in SETS else f"<folder of>/{source}"),
        code=manifest.training.code if manifest.training else "",
        libraries=", ".join(f"{name} {version}" for name, version in manifest.libraries.items()),
        overview=_pictures([name for name in pictures if name == "overview.png"]),
        pictures=_pictures([name for name in pictures if name != "overview.png"]),
        fitted=f"{metrics['fitted'].n:,}" if "fitted" in metrics else "the",
        figures=_markdown(*figure_table(metrics)),
        samples=_samples(metrics),
        window="" if side >= 11 else f"; here {side - 1 + side % 2}×{side - 1 + side % 2}, as large as fits",
        evaluate=f" --iwae-k {iwae.k} --iwae-n {iwae.n}" if iwae else "",
        n=len(data.pixels),
        splits=splits(data),
        digest=data.digest[:16],
        skipped=f", {len(data.skipped):,} other files skipped" if data.skipped else "",
        licence=data.licence,
    )


def beside_float32(
    exact: Manifest, metrics: Mapping[str, Metric], size: float, faster: Mapping[str, float]
) -> str:
    """The section of a quantized model about what it is beside the one that it was made of, Markdown.

    `size`: of its graphs, as a share of the other's; `faster`: how many times as fast it is, by what it does.
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
    """How many images each part has."""
    return ", ".join(f"{len(getattr(data.split, part)):,} {part}" for part in ("train", "validation", "test"))


def fit_command(config: Mapping[str, Any], source: str) -> str:
    """The command that trains this again from the data at `source`, with all that decides the weights."""
    words = [f"vae-train fit --data {source}"]
    if config.get("name") not in (None, Path(source).stem):
        words.append(f"--name {config['name']}")
    if size := config.get("image_size"):
        words.append(f"--image-size {size[0]}x{size[1]}")
    words += [f"--{flag} {config[flag]}" for flag in FLAGS if config.get(flag) is not None]
    words += [f"--{flag} {config[flag]}" for flag, usual in LATER.items() if config.get(flag, usual) != usual]
    if config.get("free_bits"):
        words.append(f"--free-bits {config['free_bits']}")
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
    others: Mapping[str, str] = BESIDE,
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the figures: what, this model, what stands beside it, and of how many images."""
    beside = [suffix for suffix in others if any(f"{key}{suffix}" in metrics for key in figures)]
    rows = []
    for key, (title, form) in figures.items():
        if key in metrics:
            found = [metrics.get(f"{key}{suffix}") for suffix in beside]
            taken = f"N = {metrics[key].n:,}" + (f", k = {metrics[key].k:,}" if metrics[key].k else "")
            rows.append([title, *(_figure(metric, form) if metric else "–" for metric in found), taken])
    return ["", *(others[suffix] for suffix in beside), "of"], rows


def sample_table(metrics: Mapping[str, Metric]) -> tuple[list[str], list[list[str]]]:
    """The same of the samples: no rows where there are no such figures."""
    return figure_table(metrics, SAMPLES, BESIDE_SAMPLES)


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
    return "\n".join(f"{CAPTIONS[name]}\n\n![{name.partition('.')[0]}]({name})\n" for name in names)
