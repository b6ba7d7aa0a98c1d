"""The pictures of a model, as PNG files: what it restores, invents, and how its latents are laid out.

They are transparent, with text in a grey that can be read on white and on black.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.images import ByteImages, Images, Indices, Subset, pieces
from training.evaluation.parts import Parts
from training.fit.validation import selection_score
from training.publishing.lettering import drawable, font_families
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.images import contact_sheet, encode_image
from vaeserve.bundle.prior import Prior

COLUMNS = 10
SHOWN_SIDE = 56  # pixels that a small image is enlarged to, so that one can see it
GAP = 4  # pixels between images
GREY = "#808080"
MOST_POINTS = 2000  # on the map: more hide each other, and take t-SNE long
MOST_ROWS = 10  # of traversals
REACH = 3.0  # of a traversal, in standard deviations of N(0, I)
UNUSED = 0.01  # nats: a dimension with less KL says nothing, and moving it changes nothing
NEAREST = 5
CURVES = {
    "elbo": "ELBO, nats per image",
    "distortion": "distortion, nats per image",
    "rate": "rate, nats per image",
    "mse": "mean squared error",
}

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def draw_all(
    engine: Engine, data: Images, rows: Indices, means: Floats, kl: Doubles, parts: Parts | None = None
) -> dict[str, bytes]:
    """Every picture that a model and its data give, by file name, without those that cannot be drawn.

    `rows`: the images to show, of test or validation; `means`: their posterior means, float32 [n, *latent];
    `kl`: their mean KL to N(0, I), [*latent], in nats.
    """
    from matplotlib import rc_context

    parts = parts or Parts(all_needed=True)
    # A random choice, always the same: the first images of a folder are all of its first class.
    chosen = np.random.default_rng(0).permutation(len(rows))[:MOST_POINTS]
    originals, means = Subset(data.pixels, rows[chosen]), means[chosen]
    labels = None if data.labels is None else data.labels[rows[chosen]]
    names, families = _lettering(data.label_names or (), parts)
    pictures: dict[str, Callable[[], bytes]] = {
        "overview.png": lambda: overview(engine, originals[:COLUMNS], means[:COLUMNS]),
        "reconstructions.png": lambda: reconstructions(
            engine, originals[: 3 * COLUMNS], means[: 3 * COLUMNS]
        ),
        "samples.png": lambda: samples(engine),
        "interpolations.png": lambda: interpolations(engine, originals[:12], means[:12]),
        "traversals.png": lambda: traversals(engine, means[0], kl),
        "neighbours.png": lambda: neighbours(engine, data),
        "map.png": lambda: latent_map(means, labels, names),
        "kl.png": lambda: kl_bars(kl),
    }
    if _prior(engine).by_label:
        pictures["labels.png"] = lambda: labelled(engine, names)
    drawn = {}
    with rc_context({"font.family": families}):
        for name, draw in pictures.items():
            with parts.optional(name):
                drawn[name] = draw()
    return drawn


def as_webp(name: str, picture: bytes) -> tuple[str, bytes]:
    """A picture as WebP, and its name: of photographs it is a sixth of the PNG."""
    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).save(file, "WEBP", quality=90)
    return f"{name.removesuffix('.png')}.webp", file.getvalue()


def _lettering(label_names: Sequence[str], parts: Parts) -> tuple[tuple[str, ...], list[str]]:
    """The class names as they can be drawn, and the fonts for them."""
    names, families = tuple(f"class {number}" for number in range(len(label_names))), ["sans-serif"]
    with parts.optional("the names of its classes in the pictures"):
        families = font_families(label_names)
        names = drawable(label_names, families)
    if lacking := [label_names[n] for n, name in enumerate(names) if name == f"class {n}" != label_names[n]]:
        parts.without(
            f"the names of {len(lacking)} classes in the pictures",
            f"no installed font has all letters of {lacking[0]}, which is drawn as its number",
        )
    return names, families


def overview(engine: Engine, originals: ByteImages, means: Floats) -> bytes:
    """One picture that says what the model does: originals, reconstructions, samples, an interpolation."""
    return _sheet(
        [
            ("originals", originals),
            ("reconstructions", engine.decode(means)),
            ("samples", _sampled(engine, COLUMNS)),
            ("interpolation", engine.decode(_between(means[0], means[1], COLUMNS))),
        ]
    )


def reconstructions(engine: Engine, originals: ByteImages, means: Floats) -> bytes:
    """Originals, and below each what the decoder makes of its posterior mean."""
    rows: list[tuple[str, ByteImages]] = []
    for at in range(0, len(originals), COLUMNS):
        rows.append(("originals", originals[at : at + COLUMNS]))
        rows.append(("reconstructions", engine.decode(means[at : at + COLUMNS])))
    return _sheet(rows, pairs=True)


def samples(engine: Engine) -> bytes:
    """64 draws from the prior that is served."""
    return encode_image(contact_sheet(_enlarged(_sampled(engine, 64))))


def labelled(engine: Engine, names: Sequence[str]) -> bytes:
    """Samples of each label's own mixture, a row each; `names` by label."""
    shown = sorted(_prior(engine).by_label)[:MOST_ROWS]
    rows = [
        (names[label], engine.decode(_prior(engine).sample(seed=0, rows=range(COLUMNS), label=label)))
        for label in shown
    ]
    return _sheet(rows)


def interpolations(engine: Engine, originals: ByteImages, means: Floats) -> bytes:
    """Two test images at the ends of each row, and between them the straight way from mean to mean."""
    rows = []
    for row in range(len(originals) // 2):
        way = engine.decode(_between(means[2 * row], means[2 * row + 1], COLUMNS - 2))
        ends = originals[2 * row : 2 * row + 2]
        rows.append((f"pair {row + 1}", np.concatenate([ends[:1], way, ends[1:]])))
    return _sheet(rows, apart=(1, COLUMNS - 1))


def traversals(engine: Engine, mean: Floats, kl: Doubles) -> bytes:
    """One latent dimension is moved from -3 to 3, the others stay at a test image's; highest KL first."""
    steps = np.linspace(-REACH, REACH, COLUMNS + 1, dtype=np.float32)
    rows: list[tuple[str, ByteImages]] = []
    flat = kl.reshape(-1)
    for dimension in np.argsort(-flat)[:MOST_ROWS]:
        if flat[dimension] < UNUSED and rows:
            break
        latents = np.repeat(mean.reshape(1, -1), len(steps), axis=0)
        latents[:, dimension] = steps
        name = f"dimension {dimension}, {flat[dimension]:.2f} nats"
        rows.append((name, engine.decode(latents.reshape(len(steps), *mean.shape))))
    return _sheet(rows)


def neighbours(engine: Engine, data: Images) -> bytes:
    """Samples, and beside each the training images nearest to it: a model that only remembers shows here."""
    drawn = _sampled(engine, 8)
    found = nearest_training(data, drawn, NEAREST)
    return _sheet(
        [
            (f"sample {row + 1}", np.concatenate([drawn[row : row + 1], data.pixels[found[row]]]))
            for row in range(len(drawn))
        ],
        apart=(1,),
    )


def nearest_training(data: Images, images: ByteImages, count: int) -> NDArray[np.int64]:
    """Rows of the training images with the smallest squared distance to each of `images`, [m, count]."""
    wanted = images.reshape(len(images), -1).astype(np.float32) / 255
    train = np.zeros(len(data.pixels), bool)
    train[data.split.train] = True
    distances = np.full((len(images), len(data.pixels)), np.inf, np.float32)
    start = 0
    for piece in pieces(data.pixels):
        flat = piece.reshape(len(piece), -1).astype(np.float32) / 255
        distances[:, start : start + len(piece)] = np.square(flat).sum(axis=1) - 2 * wanted @ flat.T
        start += len(piece)
    distances[:, ~train] = np.inf
    nearest = np.argpartition(distances, count, axis=1)[:, :count]
    order = np.argsort(np.take_along_axis(distances, nearest, axis=1), axis=1)
    return np.take_along_axis(nearest, order, axis=1)


def latent_map(means: Floats, labels: NDArray[np.int64] | None, label_names: Sequence[str] | None) -> bytes:
    """Posterior means [n, *latent] in two dimensions by t-SNE, coloured by label: near stays near."""
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    points = means.reshape(len(means), -1)
    title = f"posterior means of {len(points):,} images"
    if points.shape[1] > 2:
        points = TSNE(2, init="pca", random_state=0, perplexity=min(30, (len(points) - 1) / 3)).fit_transform(
            points
        )
        title += ", t-SNE"
    elif points.shape[1] == 1:
        points = np.c_[points, np.zeros_like(points)]
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.subplots()
    size = float(np.clip(12_000 / len(points), 6, 60))
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, alpha=0.6)
    else:
        classes = np.unique(labels)
        for place, label in enumerate(classes):
            members = points[labels == label]
            colour = f"C{place}" if len(classes) <= 10 else _colours(len(classes))[place]
            name = label_names[label] if label_names else str(label)
            axes.scatter(members[:, 0], members[:, 1], s=size, alpha=0.7, color=colour, label=name)
        if len(classes) <= 24:
            legend = axes.legend(
                markerscale=(60 / size) ** 0.5,
                fontsize="small",
                loc="center left",
                bbox_to_anchor=(1, 0.5),
                frameon=False,
            )
            for text in legend.get_texts():
                text.set_color(GREY)
    axes.set(xticks=[], yticks=[], title=title)
    return _saved(figure)


def kl_bars(kl: Doubles) -> bytes:
    """The KL to N(0, I) of each latent dimension, largest first."""
    from matplotlib.figure import Figure

    values = np.sort(kl.reshape(-1))[::-1]
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.bar(np.arange(len(values)), values, width=0.8)
    axes.set(
        title=f"KL of each of the {len(values)} latent dimensions to N(0, I), nats; "
        f"{int((values >= UNUSED).sum())} are used",
        xticks=[],
        xlim=(-1, len(values)),
    )
    return _saved(figure)


def curves(history: Sequence[dict[str, Any]]) -> bytes:
    """ELBO, distortion, rate and MSE over the epochs; the best epoch is marked."""
    from matplotlib.figure import Figure

    epochs = [line["epoch"] for line in history]
    best = epochs[int(np.argmax([selection_score(line["validation"]) for line in history]))]
    figure = Figure(figsize=(9, 5), layout="constrained")
    for axes, (term, title) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        for part in ("train", "validation"):
            values = [_term(line[part], term) for line in history]
            axes.plot(epochs, values, label=part, marker="o" if len(epochs) < 3 else None)
        axes.axvline(best, color=GREY, linewidth=0.8, linestyle=":")
        later = values[len(values) // 10 :]  # the first epochs would flatten all that follows
        if len(later) > 2 and (spread := max(later) - min(later)) > 0:
            axes.set_ylim(min(later) - 0.3 * spread, max(later) + 0.3 * spread)
        axes.set(title=title, xlabel="epoch")
    legend = figure.axes[0].legend(frameon=False)
    for text in legend.get_texts():
        text.set_color(GREY)
    return _saved(figure)


def _term(part: Mapping[str, float], term: str) -> float:
    """One figure of a line of metrics.jsonl; the training half has no ELBO, but both its terms."""
    return -part["distortion"] - part["rate"] if term == "elbo" else part[term]


def _prior(engine: Engine) -> Prior:
    if engine.prior is None:
        raise ValueError(f"{engine.manifest.reference} has no prior to sample pictures from")
    return engine.prior


def _sampled(engine: Engine, n: int) -> ByteImages:
    return engine.decode(_prior(engine).sample(seed=0, rows=range(n)))


def _between(first: Floats, last: Floats, count: int) -> Floats:
    steps = np.linspace(0, 1, count, dtype=np.float32).reshape(-1, *[1] * first.ndim)
    return (1 - steps) * first + steps * last


def _enlarged(images: ByteImages) -> ByteImages:
    times = max(1, SHOWN_SIDE // max(images.shape[1:3]))
    return images.repeat(times, axis=1).repeat(times, axis=2)


def _sheet(
    rows: Sequence[tuple[str, ByteImages]], *, apart: tuple[int, ...] = (), pairs: bool = False
) -> bytes:
    """Rows of images [m, h, w, c] with their names at the left; more space before the columns `apart`, and
    after each second row with `pairs`."""
    from matplotlib.figure import Figure

    images = [_enlarged(row) for _, row in rows]
    height, width = images[0].shape[1:3]
    columns = max(map(len, images))
    lefts = [c * (width + GAP) + 3 * GAP * sum(c >= at for at in apart) for c in range(columns)]
    tops = [r * (height + GAP) + (3 * GAP * (r // 2) if pairs else 0) for r in range(len(images))]
    sheet = np.zeros((tops[-1] + height, lefts[-1] + width, 4), np.uint8)  # transparent where no image lies
    for top, row in zip(tops, images, strict=True):
        for left, image in zip(lefts, row, strict=False):
            sheet[top : top + height, left : left + width, :3] = image
            sheet[top : top + height, left : left + width, 3] = 255
    dots = 120
    text = 0.085 * max(len(name) for name, _ in rows) + 0.15  # inches
    wide, high = sheet.shape[1] / dots, sheet.shape[0] / dots
    figure = Figure(figsize=(text + wide + 0.05, high + 0.1))
    whole, tall = figure.get_figwidth(), figure.get_figheight()
    axes = figure.add_axes((text / whole, 0.05 / tall, wide / whole, high / tall))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.set_yticks([top + height / 2 for top in tops], labels=[name for name, _ in rows])
    axes.set_xticks([])
    axes.tick_params(length=0)
    return _saved(figure, dots)


def _colours(count: int) -> NDArray[np.float64]:
    """As many different colours, RGBA [count, 4]."""
    from matplotlib import colormaps

    return np.asarray(colormaps["hsv"](np.arange(count) / count))


def _saved(figure: Any, dots: int = 120) -> bytes:
    for axes in figure.axes:
        axes.tick_params(colors=GREY)
        axes.title.set_color(GREY)
        axes.xaxis.label.set_color(GREY)
        for spine in axes.spines.values():
            spine.set_color(GREY)
            spine.set_visible(bool(axes.lines or axes.patches))  # none around images and maps
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dots, transparent=True)
    return file.getvalue()
