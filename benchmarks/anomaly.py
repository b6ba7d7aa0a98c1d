"""Tests anomaly detection by /score: which unusual images does it detect, and how often is it wrong?

    python -m benchmarks.anomaly path/to/signs path/to/emoji mnist --minutes 5

For each set, `vae-train fit` with its defaults (but for --minutes) trains a model on all of it, and one
without each class. The lines of the table:

- defects: test images with a local defect drawn by benchmarks/defects.py, five kinds in three sizes,
- without …: the images of a class that the model was not trained on.

Figures are the AUROC against test images of what was trained on: the probability that an unusual image scores
as more unusual than a usual one. Columns: `p_value`, which decides in /score, and each score alone; of PCA
with as many dimensions the mean error, and the largest locally averaged error where each pixel is divided by
its usual error; the distance to the fifth nearest training image in pixels and in our embedding; and an
isolation forest on our embedding. `FPR` is the share of usual images with p_value ≤ 0.05, `pixel` the AUROC
of the local map over the pixels of defects, and of PCA's. A line that is in --out is not computed again.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.defects import KINDS, SIZES, damaged
from training.config import TrainConfig
from training.data.images import ByteImages, Images, Subset, from_arrays
from training.data.load import load
from training.fit import trainer
from training.fit.progress import stderr
from training.publishing.held_out import scores
from training.publishing.publish import publish_checkpoint
from vaeserve.bundle.arrays import Doubles, Floats
from vaeserve.bundle.atomic import write_atomically
from vaeserve.bundle.batched import CHUNK, decode, encode
from vaeserve.bundle.calibration import UNUSUAL
from vaeserve.bundle.cpus import usable_cpus
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.local_error import smooth
from vaeserve.bundle.repository import open_engine

SEED = 0
RATE = 0.05
MOST = 1000  # images of a line, usual and unusual
NEIGHBOURS = 5
REFERENCES = 5000  # training images that baselines know
LOCAL = 1 / 32  # standard deviation of PCA's local average, as a share of the longer side


class Unusual(NamedTuple):
    """How unusual each image is by every score, higher is more; and by place, where a score tells."""

    by_name: dict[str, Doubles]
    maps: dict[str, Floats]


def auroc(usual: NDArray[np.floating], unusual: NDArray[np.floating]) -> float:
    """P(unusual > usual) + P(equal) / 2, by ranks."""
    ordered = np.sort(usual)
    below = np.searchsorted(ordered, unusual, "left") + np.searchsorted(ordered, unusual, "right")
    return float(below.mean() / 2 / len(usual))


# --- scores -------------------------------------------------------------------------------------------------


def judge(engine: Engine, data: Images) -> Callable[[ByteImages], Unusual]:
    """The scores of a model and of the baselines, which know the training images of `data`."""
    from sklearn.decomposition import PCA
    from sklearn.ensemble import IsolationForest
    from sklearn.neighbors import NearestNeighbors

    calibration = engine.calibration
    assert calibration is not None
    assert calibration.usual is not None
    usual = calibration.usual
    rows = np.sort(np.random.default_rng(SEED).permutation(data.split.train)[:REFERENCES])
    known, shape = data.pixels[rows], data.shape
    embedded = encode(engine, known).mean.reshape(len(known), -1)
    pca = PCA(min(engine.manifest.latent.size, len(known)), random_state=SEED).fit(_flat(known))
    near_pixels, near_means = (
        NearestNeighbors(n_neighbors=NEIGHBOURS).fit(x) for x in (_flat(known), embedded)
    )
    forest = IsolationForest(random_state=SEED).fit(embedded)

    def residual(images: ByteImages) -> Floats:
        flat = _flat(images)
        errors = np.square(flat - pca.inverse_transform(pca.transform(flat))).reshape(-1, *shape)
        return errors.mean(axis=3)

    usual_residual = np.concatenate(
        [residual(Subset(data.pixels, data.split.validation)[at : at + CHUNK])
         for at in range(0, len(data.split.validation), CHUNK)]
    ).mean(axis=0)  # fmt: skip

    def pca_map(errors: Floats) -> Floats:
        return smooth((errors / (usual_residual + 1e-6)).astype(np.float32), LOCAL * max(shape[:2]))

    def unusual(images: ByteImages) -> Unusual:
        found = scores(engine, images, SEED, usual)
        mean = encode(engine, images).mean
        pictures = decode(engine, mean)
        errors, flat = residual(images), mean.reshape(len(mean), -1)
        local = pca_map(errors)
        ours = {name: UNUSUAL[name](array.astype(np.float64)) for name, array in found.by_name.items()}
        return Unusual(
            {"p_value": -np.log(calibration.p_values(found)["value"])}
            | ours
            | {
                "PCA": errors.mean(axis=(1, 2)),
                "PCA local": local.max(axis=(1, 2)),
                "NN pixels": near_pixels.kneighbors(_flat(images))[0][:, -1],
                "NN means": near_means.kneighbors(flat)[0][:, -1],
                "forest": -forest.score_samples(flat),
            },
            {"pixel": usual.map(images, pictures), "PCA pixel": local},
        )

    return unusual


def _flat(images: ByteImages) -> Floats:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


# --- lines --------------------------------------------------------------------------------------------------


def defects(engine: Engine, data: Images) -> Iterator[tuple[str, dict[str, float]]]:
    """A line for each kind and size of defect."""
    unusual, test = judge(engine, data), data.pixels[np.sort(data.split.test[:MOST])]
    usual = unusual(test)
    for size in SIZES:
        for kind in KINDS:
            images, masks = damaged(test, kind, size, SEED)
            found = unusual(images)
            yield (
                f"{size} {kind}",
                _figures(usual, found)
                | {name: auroc(each[~masks], each[masks]) for name, each in found.maps.items()},
            )


def left_out(engine: Engine, kept: Images, others: ByteImages) -> dict[str, float]:
    """The line of a class that a model of `kept` was not trained on."""
    unusual = judge(engine, kept)
    return _figures(unusual(kept.pixels[np.sort(kept.split.test[:MOST])]), unusual(others[:MOST]))


def _figures(usual: Unusual, unusual: Unusual) -> dict[str, float]:
    figures = {name: auroc(usual.by_name[name], each) for name, each in unusual.by_name.items()}
    return figures | {"FPR": float((np.exp(-usual.by_name["p_value"]) <= RATE).mean())}


def measure(source: str, minutes: float, kinds: Sequence[str], out: Path) -> dict[str, dict[str, float]]:
    """All lines of a set: those in --out, and those that are missing there."""
    data = load(source, say=stderr)
    path = out / data.name / "lines.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}

    def keep(name: str, figures: dict[str, float]) -> None:
        lines[name] = {key: round(value, 4) for key, value in figures.items()}
        write_atomically(path, json.dumps(lines, indent=1) + "\n")
        stderr(f"{data.name}, {name}: {lines[name]['p_value']}")

    if "defects" in kinds and not any(size in name for name in lines for size in SIZES):
        for name, figures in defects(_trained(data, minutes, out / data.name / "all"), data):
            keep(name, figures)
    if "left-out" in kinds and data.labels is not None and data.label_names is not None:
        for number, label in enumerate(data.label_names):
            if (name := f"without {label}") in lines:
                continue
            inside = data.labels == number
            kept = from_arrays(data.name, data.pixels[~inside], data.labels[~inside], data.label_names)
            engine = _trained(kept, minutes, out / data.name / f"without-{number}")
            keep(name, left_out(engine, kept, data.pixels[inside]))
    return lines


def _trained(data: Images, minutes: float, home: Path) -> Engine:
    """The model that `vae-train fit` publishes of a set. An interrupted run is resumed."""
    published = sorted((home / "models" / data.name).glob("*"))
    if not published:
        run = home / "run"
        config = TrainConfig(minutes=minutes, seed=SEED, device="cpu")
        done = trainer.fit(config, data, run, resume=(run / "config.json").exists())
        if not done.finished:
            raise SystemExit("stopped and saved; the same command continues")
        models = home / "models"
        published = [
            publish_checkpoint(done.checkpoint, data, models, done.history, stderr, iwae_k=1, iwae_n=1)
        ]
    return open_engine(published[-1], threads=usable_cpus())


def table(lines: dict[str, dict[str, float]]) -> str:
    """The lines and their average as a Markdown table, and below it what is compared."""
    columns = list(dict.fromkeys(name for line in lines.values() for name in line))
    mean = {name: float(np.mean([each[name] for each in lines.values() if name in each])) for name in columns}
    text = [f"| | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    for name, line in (lines | {"average": mean}).items():
        cells = [f"{line[column]:.3f}" if column in line else "–" for column in columns]
        text.append(f"| {name} | {' | '.join(cells)} |")
    behind = min(lines, key=lambda name: lines[name]["p_value"] - lines[name]["PCA local"])
    least = lines[behind]["p_value"] - lines[behind]["PCA local"]
    return "\n".join([*text, "", f"p_value minus PCA local: at least {least:+.3f} ({behind})", ""])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="+", metavar="SET", help="a folder of images, or a set of `vae-train`")
    parser.add_argument("--minutes", type=float, default=30.0, help="training of each model")
    parser.add_argument(
        "--lines", nargs="+", choices=("defects", "left-out"), default=("defects", "left-out")
    )
    parser.add_argument("--out", type=Path, default=Path("runs/anomaly"))
    asked = parser.parse_args(words)
    for each in asked.sets:
        print(f"{each}\n\n{table(measure(each, asked.minutes, asked.lines, asked.out))}", flush=True)


if __name__ == "__main__":
    main()
