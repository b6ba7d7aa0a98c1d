"""What a bundle keeps of held-out images: the scores that /score compares with, and the map of /map.

Both come from validation images, which the model was neither trained nor tested on.
"""

import math

import numpy as np

from training.data.binarised import model_inputs
from training.data.images import Images, Subset
from training.evaluation.parts import Parts
from vaeserve.bundle.arrays import ByteImages, Doubles
from vaeserve.bundle.batched import CHUNK, ImageSource, decode, encode
from vaeserve.bundle.calibration import calibrate
from vaeserve.bundle.cpus import usable_cpus
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import Draft
from vaeserve.bundle.images import fit_array
from vaeserve.bundle.latent_map import NO_LABEL, LatentMap
from vaeserve.bundle.local_error import UsualError, usual_error
from vaeserve.bundle.scores import Scores, score

CALIBRATION, MAP = "calibration.npz", "map.npz"
MOST_SCORED = 10_000  # images: a p-value near 0.05 is then good to ± 0.002
# Images of which the usual error is computed: so many pixels together, and so many images of any size.
PIXELS_USUAL, FEWEST_USUAL = 1 << 23, 100
POINTS = 2000  # of the map
THUMBNAIL = 28  # the longer side at most
THUMBNAIL_BYTES = 1_600_000  # of all thumbnails; compression leaves a third of it for digits


def with_held_out(draft: Draft, data: Images, seed: int, parts: Parts | None = None) -> Draft:
    """The draft with its map, and with its calibration if it has a likelihood.

    An earlier map or calibration is replaced without being read: it may have another format.
    """
    parts = parts or Parts(all_needed=True)
    bare = draft.manifest.model_copy(update={"map": None, "calibration": None})
    engine = Engine(Draft(draft.folder, bare).bundle(), threads=usable_cpus())
    parts.say("scoring and mapping the validation images …")
    update: dict[str, str | None] = {"map": None, "calibration": None}
    with parts.optional("the map of its latent space"):
        plane = latent_map(engine, data, seed)
        halved = plane._asdict() | {"latents": plane.latents.astype(np.float16)}
        np.savez_compressed(draft.folder / MAP, allow_pickle=False, **halved)
        update["map"] = MAP
    if bare.likelihood is not None:
        with parts.optional("the calibration of its scores"):
            images = model_inputs(bare.likelihood.kind, data, data.split.validation[:MOST_SCORED], seed)
            usual = None
            with parts.optional("the local score"):
                usual = usual_error_of(engine, data, seed)
            calibration = calibrate(scores(engine, images, seed, usual), usual)
            np.savez_compressed(draft.folder / CALIBRATION, allow_pickle=False, **calibration.arrays())
            update["calibration"] = CALIBRATION
    return Draft(draft.folder, draft.manifest.model_copy(update=update))


def usual_error_of(engine: Engine, data: Images, seed: int) -> UsualError:
    """The usual error of reconstructions of training images, centred on that of validation images."""
    likelihood, size = engine.manifest.likelihood, math.prod(data.shape[:2])
    found: list[ByteImages] = []
    for rows in (data.split.train, data.split.validation):
        chosen = np.random.default_rng(seed).permutation(rows)[: max(FEWEST_USUAL, PIXELS_USUAL // size)]
        images = model_inputs(likelihood.kind if likelihood else None, data, np.sort(chosen), seed)[:]
        found += [images, decode(engine, encode(engine, images).mean)]
    return usual_error(*found)


def scores(engine: Engine, images: ImageSource, seed: int, usual: UsualError | None = None) -> Scores:
    """The scores of images uint8 [n, h, w, c] as /score computes them; row r has the noise of row r."""
    prior, parts = engine.prior, []
    if prior is None:
        raise ValueError(f"{engine.manifest.reference} has no prior, so images have no scores")
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        posterior = engine.encode(part)
        z = posterior.sample(seed, range(start, start + len(part)))
        pictures = engine.decode(posterior.mean)
        parts.append(
            score(
                engine.manifest,
                part,
                posterior,
                engine.pixels(z),
                pictures,
                prior.log_density(posterior.mean),
                usual.local(part, pictures) if usual else None,
            )
        )
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in parts[0].by_name}
    return Scores(**{name: column for name, column in columns.items() if name != "elbo"})


def latent_map(engine: Engine, data: Images, seed: int) -> LatentMap:
    """Up to `POINTS` validation images on the plane of the first two principal components of their means.

    The plane is fitted to the posterior means of all validation images.
    """
    held_out = data.split.validation
    likelihood = engine.manifest.likelihood
    mean, _ = encode(engine, model_inputs(likelihood.kind if likelihood else None, data, held_out, seed))
    centre, components, variance = _plane(mean.reshape(len(mean), -1).astype(np.float64))
    chosen = np.random.default_rng(seed).permutation(len(held_out))[:POINTS]
    rows, latents = held_out[chosen], mean[chosen].astype(np.float16)
    flat = latents.reshape(len(latents), -1).astype(np.float64)
    labels = np.full(len(rows), NO_LABEL)
    if data.labels is not None and engine.manifest.labels == data.label_names is not None:
        labels = data.labels[rows]
    return LatentMap(
        mean=centre.astype(np.float32),
        components=components.astype(np.float32),
        variance=variance.astype(np.float32),
        points=((flat - centre) @ components.T).astype(np.float32),
        labels=labels.astype(np.int16),
        latents=latents.astype(np.float32),
        thumbnails=_thumbnails(Subset(data.pixels, rows), len(rows)),
    )


def _plane(means: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Centre [d], principal components [2, d] and their shares of the variance [2] of means [n, d]."""
    from sklearn.decomposition import PCA

    pca = PCA(min(2, *means.shape), svd_solver="full").fit(means)
    missing = 2 - len(pca.components_)  # in a latent space with one dimension
    components = np.pad(pca.components_, ((0, missing), (0, 0)))
    return pca.mean_, components, np.pad(np.nan_to_num(pca.explained_variance_ratio_), (0, missing))


def _thumbnails(images: Subset, n: int) -> ByteImages:
    """The images, scaled down until they fit into `THUMBNAIL_BYTES`, uint8 [n, h, w, c]."""
    _, height, width, channels = images[:1].shape
    side = min(THUMBNAIL, math.isqrt(THUMBNAIL_BYTES // (n * channels)), max(height, width))
    scale = side / max(height, width)
    h, w = (max(1, round(scale * length)) for length in (height, width))
    return np.stack(
        [
            fit_array(image, height=h, width=w, channels=channels, fit="stretch")
            for start in range(0, n, CHUNK)
            for image in images[start : start + CHUNK]
        ]
    )
