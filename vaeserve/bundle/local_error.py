"""Where an image is unusual: the error of its reconstruction in places, beside what is usual there.

A mean over the image drowns a scratch of ten pixels. So the residual x - x̂ is smoothed at a few scales, where
noise cancels and a stain adds up. Its square is divided by what is usual of it: at that place, at that
brightness of the reconstruction, and beside an edge as strong as there, where every model errs most.
"""

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle.arrays import ByteImages, Doubles, Floats

SCALES = (0.0, 1 / 64, 1 / 32, 1 / 16)  # standard deviation of the smoothing, as a share of the longer side
BINS = 16  # of brightness and of edges
ROUNDS = 4  # in which each factor is fitted while the others are fixed
PLACE = 1 / 32  # smoothing of the usual error by place, as a share of the longer side
WEIGHT = 0.5  # images; the mean over all places weighs as much in each place
QUANTISED = np.float32(1 / 255**2 / 12)  # the variance that rounding to levels leaves
PIECE = 1 << 21  # values computed at once
REACH = 3.0  # standard deviations below the most unusual place, down to which its region reaches
LARGEST = 2048  # pixels of a side: smoothing multiplies by a matrix of that size

Bins = NDArray[np.intp]


class UsualError(NamedTuple):
    """The usual squared error at each of s scales: place × brightness × edge.

    `place` float32 [s, h, w], on [0, 1] squared; `brightness` and `edge` float32 [s, BINS], factors; `edges`
    float32 [BINS - 1], the gradients between the bins of `edge`. `centre` and `spread` float32 [s]: mean and
    standard deviation of log(error / usual error) at the most unusual place of an image.
    """

    place: Floats
    brightness: Floats
    edge: Floats
    edges: Floats
    centre: Floats
    spread: Floats

    @classmethod
    def checked(cls, arrays: Mapping[str, NDArray[Any]], image: tuple[int, int, int]) -> "UsualError":
        """Of the arrays of a file, for images of that shape. ValueError names one that does not fit."""
        scales = len(SCALES)
        shapes = {
            "place": (scales, *image[:2]), "brightness": (scales, BINS), "edge": (scales, BINS),
            "edges": (BINS - 1,), "centre": (scales,), "spread": (scales,),
        }  # fmt: skip
        for name, shape in shapes.items():
            array = arrays.get(name)
            if (
                array is None
                or array.dtype != np.float32
                or array.shape != shape
                or not np.isfinite(array).all()
            ):
                raise ValueError(f"{name} must be float32 {list(shape)} and finite")
            if name not in ("edges", "centre") and (array <= 0).any():
                raise ValueError(f"{name} must be above 0")
        return cls(**{name: arrays[name] for name in shapes})

    def local(self, images: ByteImages, reconstructions: ByteImages) -> Doubles:
        """How unusual the most unusual place of each image is, in standard deviations, float64 [n]."""
        found = np.empty(len(images))
        for part in _parts(images):
            found[part] = self.map(images[part], reconstructions[part]).max(axis=(1, 2))
        return found

    def map(self, images: ByteImages, reconstructions: ByteImages) -> Floats:
        """How unusual each place is, float32 [n, h, w]. The maximum of an image is its `local`."""
        largest = np.full(images.shape[:3], -np.inf, np.float32)
        for scale, ratio in enumerate(self._log_ratios(images, reconstructions)):
            np.maximum(largest, (ratio - self.centre[scale]) / self.spread[scale], out=largest)
        return largest

    def _log_ratios(self, images: ByteImages, reconstructions: ByteImages) -> Iterator[Floats]:
        """log(error / usual error) at each scale, float32 [n, h, w]."""
        bright, edge = _bins(reconstructions, self.edges)
        residual = _residual(images, reconstructions)
        for scale in range(len(SCALES)):
            usual = self.place[scale] * self.brightness[scale][bright] * self.edge[scale][edge]
            yield np.log((_error(residual, scale) + QUANTISED) / (usual + QUANTISED))

    def _largest(self, images: ByteImages, reconstructions: ByteImages) -> Floats:
        """The largest of these in each image, float32 [s, n]."""
        ratios = self._log_ratios(images, reconstructions)
        return np.stack([ratio.max(axis=(1, 2)) for ratio in ratios])


def usual_error(
    images: ByteImages,
    reconstructions: ByteImages,
    held_out: ByteImages,
    reconstructed: ByteImages,
) -> UsualError:
    """The usual error of images uint8 [n, h, w, c] and of their reconstructions from posterior means.

    `held_out` and `reconstructed` are images that the model was not trained on: they give `centre` and
    `spread`, because errors of training images may be smaller everywhere. ValueError for images that are too
    large.
    """
    if max(images.shape[1:3]) > LARGEST:
        raise ValueError(f"images have more than {LARGEST:,} pixels a side")
    gradients = np.concatenate([_gradient(reconstructions[part]).ravel() for part in _parts(images)])
    edges = np.quantile(gradients, np.linspace(0, 1, BINS + 1)[1:-1]).astype(np.float32)
    binned = [_bins(reconstructions[part], edges) for part in _parts(images)]
    bright, edge = (np.concatenate(each) for each in zip(*binned, strict=True))
    factors = []
    for scale in range(len(SCALES)):
        errors = [_error(_residual(images[part], reconstructions[part]), scale) for part in _parts(images)]
        factors.append(_factors(np.concatenate(errors), bright, edge))
    place, brightness, edge_factor = (np.stack(each) for each in zip(*factors, strict=True))
    zero, one = np.zeros(len(SCALES), np.float32), np.ones(len(SCALES), np.float32)
    found = UsualError(place, brightness, edge_factor, edges, zero, one)
    parts = _parts(held_out)
    largest = np.concatenate([found._largest(held_out[part], reconstructed[part]) for part in parts], axis=1)
    return found._replace(centre=largest.mean(axis=1), spread=np.maximum(largest.std(axis=1), 1e-3))


def region(found: Floats) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the region around the most unusual place of a map float32 [h, w].

    Bottom and right are exclusive.
    """
    peak = int(found.argmax())
    above = found >= found.flat[peak] - REACH
    inside = np.zeros_like(above)
    inside.flat[peak] = True
    count = 0
    while count < (count := int(inside.sum())):
        grown = np.pad(inside, 1)
        grown = grown[:, :-2] | grown[:, 1:-1] | grown[:, 2:]
        inside = (grown[:-2] | grown[1:-1] | grown[2:]) & above
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _factors(error: Floats, bright: Bins, edge: Bins) -> tuple[Floats, Floats, Floats]:
    """Place [h, w], brightness and edge [BINS] of the errors [n, h, w]: the maximum likelihood of a variance
    that is their product, by turns."""
    n, *shape = error.shape
    mean = float(error.mean()) + 1e-12
    smoothing = PLACE * max(shape)
    place, by_bright, by_edge = np.full(shape, mean), np.ones(BINS), np.ones(BINS)

    def per_bin(bins: Bins, others: Doubles) -> Doubles:
        # A bin that is nearly empty stays at 1.
        ratios = np.bincount(bins.ravel(), (error / others).ravel(), BINS) + WEIGHT
        return ratios / (np.bincount(bins.ravel(), minlength=BINS) + WEIGHT)

    for _ in range(ROUNDS):
        ratio = (error / (by_bright[bright] * by_edge[edge])).mean(axis=0)
        place = (n * smooth(ratio, smoothing) + WEIGHT * ratio.mean()) / (n + WEIGHT) + 1e-12
        by_bright = per_bin(bright, place * by_edge[edge])
        by_edge = per_bin(edge, place * by_bright[bright])
    return place.astype(np.float32), by_bright.astype(np.float32), by_edge.astype(np.float32)


def _residual(images: ByteImages, reconstructions: ByteImages) -> Floats:
    """x - x̂ on [-1, 1], float32 [n, c, h, w]."""
    return ((images.astype(np.float32) - reconstructions) / np.float32(255)).transpose(0, 3, 1, 2)


def _error(residual: Floats, scale: int) -> Floats:
    """The square of the residual smoothed at a scale, its mean over channels; float32 [n, h, w]."""
    squares: Floats = np.square(smooth(residual, SCALES[scale] * max(residual.shape[2:]))).mean(axis=1)
    return squares


def _bins(reconstructions: ByteImages, edges: Floats) -> tuple[Bins, Bins]:
    """The bin of brightness and that of the gradient in each place, [n, h, w]."""
    brightness = reconstructions.mean(axis=3) * (BINS / 256)
    return brightness.astype(np.intp), np.searchsorted(edges, _gradient(reconstructions))


def _gradient(reconstructions: ByteImages) -> Floats:
    """The length of the gradient of the brightness, in levels a pixel, float32 [n, h, w]."""
    grey = np.pad(reconstructions.mean(axis=3, dtype=np.float32), ((0, 0), (1, 1), (1, 1)), "edge")
    down, right = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1], grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    gradient: Floats = np.hypot(down, right) / np.float32(2)
    return gradient


def smooth(values: NDArray[np.floating], deviation: float) -> NDArray[Any]:
    """[…, h, w] convolved with a Gaussian of so many pixels, mirrored at the border."""
    if deviation <= 0:
        return values
    height, width = values.shape[-2:]
    smoothed: NDArray[Any] = _gaussian(height, deviation) @ values @ _gaussian(width, deviation).T
    return smoothed


@lru_cache(64)
def _gaussian(side: int, deviation: float) -> Floats:
    """The matrix [side, side] of that convolution along one axis."""
    reach = min(math.ceil(4 * deviation), side * 4)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * np.square(offsets / deviation))
    weights /= weights.sum()
    matrix = np.zeros((side, side))
    for row in range(side):
        at = (row + offsets) % (2 * side)
        np.add.at(matrix[row], np.where(at < side, at, 2 * side - 1 - at), weights)
    return matrix.astype(np.float32)


def _parts(images: ByteImages) -> Iterator[slice]:
    """Slices of the images that are worked on at once."""
    step = max(1, PIECE // math.prod(images.shape[1:]))
    return (slice(start, start + step) for start in range(0, len(images), step))
