"""Local defects drawn onto images: scratches, spots, missing pieces, blur and stains, in three sizes.

Every defect lies on something that the image shows, so a spot on an empty background is not among them.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Images = NDArray[np.uint8]  # [n, h, w, c]
Floats = NDArray[np.float64]

SIZES = {"small": 0.08, "medium": 0.16, "large": 0.32}  # diameter, as a share of the shorter side
LONGER = 2  # a scratch is so many times as long as the others are wide
VISIBLE = 0.1  # mean change of the changed pixels, on [0, 1]
TRIES = 20
CHANGED = 4 / 255

# (image [h, w, c] in [0, 1], centre (row, column), diameter in pixels, rng) → the image with a defect.
Draw = Callable[[Floats, tuple[float, float], float, np.random.Generator], Floats]


def damaged(images: Images, kind: str, size: str, seed: int) -> tuple[Images, NDArray[np.bool_]]:
    """Images with one defect each, and the pixels that it changed, bool [n, h, w].

    Image r has the same defect whatever the others are.
    """
    found, masks = np.empty_like(images), np.empty(images.shape[:3], bool)
    for row, image in enumerate(images):
        rng = np.random.default_rng([seed, row, sorted(KINDS).index(kind)])
        found[row] = _one(image / 255, KINDS[kind], SIZES[size] * min(image.shape[:2]), rng)
        masks[row] = np.abs(found[row].astype(np.float64) - image).max(axis=2) / 255 > CHANGED
    return found, masks


def _one(image: Floats, draw: Draw, diameter: float, rng: np.random.Generator) -> Images:
    """The image with a defect that can be seen: the first visible one, or the most visible of all tries."""
    places = np.argwhere(_shown(image))
    best, most = image, -1.0
    for _ in range(TRIES):
        row, column = places[rng.integers(len(places))] + rng.uniform(0, 1, 2)
        new = np.clip(draw(image, (row, column), diameter, rng), 0, 1)
        change = np.abs(new - image).max(axis=2)
        visible = float(change[change > CHANGED].mean()) if (change > CHANGED).any() else 0.0
        if visible > most:
            best, most = new, visible
        if visible >= VISIBLE:
            break
    return np.rint(best * 255).astype(np.uint8)


def _shown(image: Floats) -> NDArray[np.bool_]:
    """The pixels that differ from the usual colour of the border; all pixels if hardly any do."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    shown = np.abs(image - np.median(border, axis=0)).max(axis=2) > 0.1
    return shown if shown.mean() > 0.02 else np.ones_like(shown)


def _disc(shape: tuple[int, ...], centre: tuple[float, float], diameter: float, soft: float = 1.0) -> Floats:
    """1 in a disc, 0 outside, with an edge `soft` pixels wide; [h, w, 1]."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    away = np.hypot(rows + 0.5 - centre[0], columns + 0.5 - centre[1])
    inside: Floats = np.clip((diameter / 2 - away) / soft + 0.5, 0, 1)[:, :, np.newaxis]
    return inside


def _line(shape: tuple[int, ...], points: list[tuple[float, float]], width: float) -> Floats:
    """1 on a line through (row, column) points, [h, w, 1], drawn at four times the size."""
    canvas = Image.new("L", (4 * shape[1], 4 * shape[0]))
    ImageDraw.Draw(canvas).line(
        [(4 * column, 4 * row) for row, column in points], 255, max(1, round(4 * width)), "curve"
    )
    return np.asarray(canvas.resize((shape[1], shape[0]), Image.Resampling.BOX))[:, :, np.newaxis] / 255.0


def _contrast(image: Floats, mask: Floats, rng: np.random.Generator) -> Floats:
    """A colour that differs from what is below the mask by 0.3 to 0.6."""
    below = (image * mask).sum(axis=(0, 1)) / max(mask.sum(), 1e-9)
    by = rng.uniform(0.3, 0.6)
    colour: Floats = below + (by if below.mean() < 0.5 else -by) + rng.normal(0, 0.05, below.shape)
    return colour


def scratch(image: Floats, centre: tuple[float, float], diameter: float, rng: np.random.Generator) -> Floats:
    """A thin bent line, lighter or darker than what is below."""
    angle, length = rng.uniform(0, np.pi), LONGER * diameter
    along, across = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
    steps = np.linspace(-0.5, 0.5, 7)
    bend = rng.normal(0, 0.3) * length
    path = [tuple(np.array(centre) + step * length * along + bend * step**2 * across) for step in steps]
    mask = _line(image.shape, path, max(1.0, min(image.shape[:2]) / 64))
    return image + mask * (_contrast(image, mask, rng) - image)


def spot(image: Floats, centre: tuple[float, float], diameter: float, rng: np.random.Generator) -> Floats:
    """A filled disc of another brightness, half as wide as the other defects."""
    mask = _disc(image.shape, centre, diameter / 2)
    return image + mask * (_contrast(image, mask, rng) - image)


def missing(image: Floats, centre: tuple[float, float], diameter: float, rng: np.random.Generator) -> Floats:
    """A piece that shows the background."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    mask = _disc(image.shape, centre, diameter)
    return image + mask * (np.median(border, axis=0) - image)


def blur(image: Floats, centre: tuple[float, float], diameter: float, rng: np.random.Generator) -> Floats:
    """A region out of focus."""
    channels = [Image.fromarray(each) for each in np.rint(255 * image).astype(np.uint8).transpose(2, 0, 1)]
    blurred = [np.asarray(each.filter(ImageFilter.GaussianBlur(diameter / 3))) / 255 for each in channels]
    return image + _disc(image.shape, centre, 1.5 * diameter, 2) * (np.stack(blurred, axis=2) - image)


def stain(image: Floats, centre: tuple[float, float], diameter: float, rng: np.random.Generator) -> Floats:
    """A soft patch that darkens and tints what is below."""
    tint = rng.uniform(0.4, 0.8) * rng.uniform(0.8, 1.2, image.shape[2])
    return image + _disc(image.shape, centre, diameter, diameter / 2) * (image * (tint - 1))


KINDS: dict[str, Draw] = {
    "scratch": scratch,
    "spot": spot,
    "missing": missing,
    "blur": blur,
    "stain": stain,
}
