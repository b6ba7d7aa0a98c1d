"""From a checkpoint to a published bundle: export a draft, evaluate that draft, draw its card, publish."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.data.binarised import model_inputs
from training.data.images import DataError, Images, Say
from training.evaluation.evaluate import IWAE_K, IWAE_N, Evaluation, evaluate
from training.publishing import calibration, mapping, report
from training.publishing import figures as pictures
from training.publishing.card import beside_float32, card
from training.publishing.export import export
from training.publishing.quantize import CALIBRATED_ON, quantize, speed
from vaeserve.bundle.batched import encode
from vaeserve.bundle.cpus import usable_cpus
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import Draft, publish, read_bundle
from vaeserve.bundle.repository import open_engine


def release(
    checkpoint: Path,
    data: Images,
    models: Path,
    history: Sequence[dict[str, Any]],
    say: Say = print,
    *,
    iwae_k: int = IWAE_K,
    iwae_n: int = IWAE_N,
) -> Path:
    """Publish the checkpoint as the next version in the repository `models`; returns the bundle's folder.

    The figures and pictures come from the draft's own graphs, so what is published is what was measured;
    they are also kept in the run's folder for its report. `history`: the lines of metrics.jsonl; `iwae_k`,
    `iwae_n`: samples and images of the importance-weighted bound. Raises
    ExportError when the graphs do not compute what torch computes; then nothing is published.
    """
    with tempfile.TemporaryDirectory() as work:
        say("exporting to ONNX and comparing with torch …")
        draft = with_held_out(export(checkpoint, data, Path(work)), data, say)
        engine = Engine(draft.bundle(), threads=usable_cpus())
        evaluation = evaluate(engine, data, seed=_seed(draft), iwae_k=iwae_k, iwae_n=iwae_n, say=say)
        say("drawing the pictures …")
        _write_card(draft, engine, data, evaluation, history)
        manifest = draft.manifest.model_copy(update={"metrics": evaluation.metrics})
        bundle = publish(models, manifest.name, Draft(draft.folder, manifest))
    step = draft.manifest.training.config["step"] if draft.manifest.training else 0
    report.keep(checkpoint.parents[1], bundle, step, data, evaluation)
    return bundle


def complete(path: Path, data: Images, models: Path, say: Say = print) -> Path:
    """Publish the bundle in folder `path` again, as the next version of its name in the repository `models`,
    with calibration and map made anew; `data` are those that it was trained on. Returns the new folder.
    """
    bundle = read_bundle(path)
    manifest = bundle.manifest
    trained_on = manifest.training.data.digest if manifest.training else data.digest
    if trained_on != data.digest:
        raise DataError(
            f"{manifest.reference} was trained on other images than these, so none of these are known to be "
            "held out; give the data that it was trained on"
        )
    with tempfile.TemporaryDirectory() as work:
        for name in manifest.files:
            shutil.copyfile(path / name, Path(work) / name)
        draft = Draft(Path(work), manifest.model_copy(update={"labels": manifest.labels or data.label_names}))
        return publish(models, manifest.name, with_held_out(draft, data, say))


def release_int8(path: Path, data: Images, models: Path, say: Say = print) -> Path:
    """Publish the bundle in folder `path` in eight-bit integers, as a model of its own, `<name>-int8`.

    It is evaluated as the other one was; the card tells what it loses and gains beside it. `data` are those
    that the bundle was trained on. Returns the new folder.
    """
    exact = open_engine(path)
    bundle, manifest = exact.bundle, exact.manifest
    if manifest.likelihood is None or manifest.training is None:
        raise DataError(
            f"{manifest.reference} does not say how it was trained; quantize one that vae-train made"
        )
    if manifest.training.data.digest != data.digest:
        raise DataError(
            f"{manifest.reference} was trained on other images; give the data that it was trained on"
        )
    seed = int(manifest.training.config["seed"])
    with tempfile.TemporaryDirectory() as work:
        for name in manifest.files:
            if Path(name).suffix in (".onnx", ".npz"):
                shutil.copyfile(path / name, Path(work) / name)
        say("quantising …")
        rows = np.sort(np.random.default_rng(seed).permutation(data.split.train)[:CALIBRATED_ON])
        images = model_inputs(manifest.likelihood.kind, data, rows, seed)[:]
        latents = encode(exact, images).sample(seed)
        draft = with_held_out(quantize(Draft(Path(work), manifest), images, latents), data, say)
        engine = Engine(draft.bundle())
        faster = speed(exact, engine)
        metrics = manifest.metrics
        k, n = (metrics["iwae"].k or IWAE_K, metrics["iwae"].n) if "iwae" in metrics else (IWAE_K, IWAE_N)
        evaluation = evaluate(engine, data, seed=seed, iwae_k=k, iwae_n=n, say=say)
        say("drawing the pictures …")
        _write_card(draft, engine, data, evaluation, ())
        size = [
            sum((folder / f"{side}.onnx").stat().st_size for side in ("encoder", "decoder"))
            for folder in (draft.folder, bundle.path)
        ]
        told = beside_float32(manifest, evaluation.metrics, size[0] / size[1], faster)
        readme = draft.folder / "README.md"
        text = readme.read_text(encoding="utf-8").replace("## Figures", f"{told}\n## Figures", 1)
        readme.write_text(text, encoding="utf-8")
        final = draft.manifest.model_copy(update={"metrics": evaluation.metrics})
        return publish(models, final.name, Draft(draft.folder, final))


def with_held_out(draft: Draft, data: Images, say: Say) -> Draft:
    """The draft with what the validation images are needed for when it is served: calibration and map."""
    engine = Engine(_without_held_out(draft).bundle(), threads=usable_cpus())
    say("scoring and mapping the validation images …")
    seed = _seed(draft)
    files: dict[str, str] = {"map": mapping.FILE}
    mapping.write_map(engine, data, seed, draft.folder)
    if draft.manifest.likelihood is not None:
        files["calibration"] = calibration.FILE
        held_out = model_inputs(draft.manifest.likelihood.kind, data, data.split.validation, seed)
        calibration.write_calibration(engine, held_out, seed, draft.folder)
    return Draft(draft.folder, draft.manifest.model_copy(update=files))


def _without_held_out(draft: Draft) -> Draft:
    """What was there of an earlier version could be of another format; it is written anew anyway."""
    return Draft(draft.folder, draft.manifest.model_copy(update={"map": None, "calibration": None}))


def _write_card(
    draft: Draft, engine: Engine, data: Images, evaluation: Evaluation, history: Sequence[dict[str, Any]]
) -> None:
    """README.md and its pictures, into the draft's folder."""
    drawn = pictures.draw_all(engine, data, data.split.test, evaluation.means, evaluation.kl)
    if history:
        drawn["curves.png"] = pictures.curves(history)
    for name, picture in drawn.items():
        (draft.folder / name).write_bytes(picture)
    text = card(draft.manifest, data, evaluation.metrics, list(drawn))
    (draft.folder / "README.md").write_text(text, encoding="utf-8")


def _seed(draft: Draft) -> int:
    """The run's seed, which also draws the evaluation's noise."""
    return int(draft.manifest.training.config["seed"]) if draft.manifest.training else 0
