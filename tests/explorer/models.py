"""A repository for the explorer: models in grey and in colour, with and without a map and a calibration."""

from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

import numpy as np

from tests.bundles import make_bundle, make_draft
from tests.checkout import ROOT
from vaeserve.bundle.calibration import calibrate
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import Draft, publish, read_bundle, versions
from vaeserve.bundle.latent_map import LatentMap
from vaeserve.bundle.posterior import Posterior
from vaeserve.bundle.repository import open_engine
from vaeserve.bundle.scores import score

SHIPPED = ROOT / "models/mnist"
POINTS = 300


def make_repository(folder: Path) -> Path:
    """A model of each kind.

    mnist@1 is the shipped one with a map and a calibration of its own samples. colour@1 is 12×10 RGB
    without either. photos@1 is 64×64 RGB with both. cover@1 and stretch@1 fit images as their names say.
    """
    make_bundle(folder, "colour", 12, 10, 3, (2, 3, 4), held_out=0)
    make_bundle(folder, "photos", 64, 64, 3, (8,))
    for fit in ("cover", "stretch"):
        with TemporaryDirectory() as name:
            draft = make_draft(Path(name), fit, 64, 64, 3, (8,), held_out=0)
            image = draft.manifest.image.model_copy(update={"fit": fit})
            publish(folder, fit, Draft(draft.folder, draft.manifest.model_copy(update={"image": image})))
    shipped = SHIPPED / str(max(versions(SHIPPED)))
    manifest, engine = read_bundle(shipped).manifest, open_engine(shipped)
    with TemporaryDirectory() as name:
        draft = Path(name)
        for file in manifest.files:
            copyfile(shipped / file, draft / file)
        write_map_and_calibration(engine, draft)
        files = {"map": "map.npz", "calibration": "calibration.npz"}
        publish(folder, "mnist", Draft(draft, manifest.model_copy(update=files)))
    return folder


def write_map_and_calibration(engine: Engine, folder: Path) -> None:
    """As training writes them of held-out images; here of samples, labelled by how much ink they have."""
    images = engine.decode(engine.prior.sample(seed=1, rows=range(POINTS)))
    posterior = Posterior(*engine.encode(images))
    mean, flat = posterior.mean, posterior.mean.reshape(POINTS, -1)
    centre = flat.mean(axis=0)
    _, deviations, components = np.linalg.svd(flat - centre, full_matrices=False)
    labels = np.empty(POINTS, np.int16)
    labels[images.reshape(POINTS, -1).sum(axis=1).argsort()] = np.arange(POINTS) * 10 // POINTS
    plane = LatentMap(
        mean=centre,
        components=components[:2],
        variance=(deviations[:2] ** 2 / (deviations**2).sum()),
        points=(flat - centre) @ components[:2].T,
        labels=labels,
        latents=mean,
        thumbnails=images,
    )
    np.savez_compressed(folder / "map.npz", allow_pickle=False, **plane._asdict())
    scores = score(
        engine.manifest, images, posterior, engine.pixels(mean), images, engine.prior.log_density(mean)
    )
    np.savez_compressed(folder / "calibration.npz", allow_pickle=False, **calibrate(scores).arrays())
