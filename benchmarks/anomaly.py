"""Tests anomaly detection by /score: are its p-values calibrated, and which anomalies does it detect?

    python -m benchmarks.anomaly models/mnist/3 --data mnist -o benchmarks/anomaly.json

On the test images P(p ≤ t) should be t. For each kind of anomaly, made from test images, the AUROC is the
probability that an anomaly scores as more unusual than a test image: by `value`, the p-value that combines
the ELBO and the prior, and by each score alone.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from training.data.images import ImageTarget, Subset
from training.data.load import load
from training.publishing.held_out import scores
from vaeserve.bundle.cpus import usable_cpus
from vaeserve.bundle.repository import open_engine
from vaeserve.bundle.scores import Scores

Images = NDArray[np.uint8]  # [n, h, w, c]

UNUSUAL = 2000  # images of each kind
SEED = 0
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
DIGIT_LIKE = "OoQDIliIjJZzSsbGTBgq"  # 0, 1, 2, 5, 6, 7, 8, 9 to a reader of single characters
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "cmr10")


def noisy(images: Images) -> Images:
    """Images with Gaussian noise, σ = 0.2 of the range."""
    noise = np.random.default_rng(SEED).normal(0, 0.2 * 255, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def inverted(images: Images) -> Images:
    return 255 - images


def rotated(images: Images) -> Images:
    """Images rotated by 90°; some digits remain digits."""
    return np.rot90(images, axes=(1, 2)).copy()


def occluded(images: Images) -> Images:
    """Images with a grey square of 8×8 at a random place."""
    rng = np.random.default_rng(SEED)
    covered = images.copy()
    for image in covered:
        top, left = (int(rng.integers(0, side - 7)) for side in image.shape[:2])
        image[top : top + 8, left : left + 8] = 128
    return covered


def letters(images: Images, alphabet: str = "".join(sorted(set(LETTERS) - set(DIGIT_LIKE)))) -> Images:
    """Letters in six fonts, without those that look like a digit.

    They are prepared like MNIST's digits: the longer side is 20 pixels, the centre of mass is in the middle.
    """
    from matplotlib import get_data_path

    _, height, width, _ = images.shape
    rng = np.random.default_rng(SEED)
    drawn = np.zeros_like(images)
    for row in range(len(images)):
        letter, font = rng.choice(list(alphabet)), rng.choice(FONTS)
        face = ImageFont.truetype(str(Path(get_data_path()) / f"fonts/ttf/{font}.ttf"), 96)
        large = Image.new("L", (192, 192))
        ImageDraw.Draw(large).text((96, 96), letter, 255, font=face, anchor="mm")
        large = large.crop(large.getbbox())
        scale = 20 / 28 * min(height, width) / max(large.size)
        size = (max(1, round(large.width * scale)), max(1, round(large.height * scale)))
        small = np.asarray(large.resize(size, Image.Resampling.LANCZOS))
        mass = small / small.sum()
        top = round(height / 2 - float((mass.sum(axis=1) * (np.arange(len(small)) + 0.5)).sum()))
        left = round(width / 2 - float((mass.sum(axis=0) * (np.arange(small.shape[1]) + 0.5)).sum()))
        top, left = (max(0, min(at, room)) for at, room in ((top, height - size[1]), (left, width - size[0])))
        drawn[row, top : top + size[1], left : left + size[0]] = small[..., np.newaxis]
    return drawn


def all_letters(images: Images) -> Images:
    """Letters of the whole alphabet; an O is a 0 and should not be detected."""
    return letters(images, LETTERS)


def nearly_blank(images: Images) -> Images:
    """Black images with noise of 1 % of the range, simpler than any digit."""
    noise = np.random.default_rng(SEED).normal(0, 0.01 * 255, images.shape)
    return np.clip(np.rint(np.abs(noise)), 0, 255).astype(np.uint8)


KINDS: dict[str, Callable[[Images], Images]] = {
    "noise": noisy,
    "inversion": inverted,
    "letters": letters,
    "all-letters": all_letters,
    "rotation": rotated,
    "occlusion": occluded,
    "near-blank": nearly_blank,
}


def unusualness(found: Scores) -> dict[str, NDArray[np.float64]]:
    """The score behind each p-value, for each image; higher is more unusual."""
    return {
        "elbo": -found.elbo,
        "distortion": found.distortion,
        "rate": found.rate,
        "prior": -found.log_prior,
        "error": found.error,
    }


def auroc(usual: NDArray[np.float64], unusual: NDArray[np.float64]) -> float:
    """P(unusual > usual) + P(equal) / 2, by ranks."""
    ordered = np.sort(usual)
    below = np.searchsorted(ordered, unusual, "left") + np.searchsorted(ordered, unusual, "right")
    return float(below.mean() / 2 / len(usual))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    engine = open_engine(options.bundle, threads=usable_cpus())
    calibration = engine.calibration
    if calibration is None:
        raise SystemExit(f"{engine.manifest.reference} has no calibration; `vae-train complete` adds it")
    image = engine.manifest.image
    data = load(options.data, ImageTarget((image.height, image.width), image.channels, image.fit))
    test = Subset(data.pixels, data.split.test)
    usual = scores(engine, test, SEED)
    p_values = calibration.p_values(usual)
    record: dict[str, Any] = {
        "model": engine.manifest.reference,
        "n": len(test),
        "calibrated_on": len(calibration.elbo),
        "share_below": {
            name: {f"{t:g}": round(float((p <= t).mean()), 4) for t in (0.01, 0.05, 0.1, 0.5)}
            for name, p in p_values.items()
        },
        "auroc": {},
        "found_at_0.05": {},
    }
    few = test[:UNUSUAL]
    for name, make in KINDS.items():
        found = scores(engine, make(few), SEED)
        of_test, of_kind = (
            {"value": -calibration.p_values(each)["value"]} | unusualness(each) for each in (usual, found)
        )
        record["auroc"][name] = {key: round(auroc(of_test[key], of_kind[key]), 4) for key in of_test}
        record["found_at_0.05"][name] = {
            key: round(float((p <= 0.05).mean()), 4) for key, p in calibration.p_values(found).items()
        }
        assert math.isfinite(found.elbo.sum())
    text = json.dumps(record, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
