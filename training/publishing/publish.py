"""Publishes bundles: exports, evaluates and describes a draft, and adds it to a repository in one step."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.data.binarised import model_inputs
from training.data.images import DataError, Images, Say
from training.evaluation.evaluate import IWAE_K, IWAE_N, Evaluation, evaluate
from training.evaluation.parts import Parts
from training.publishing import figures as pictures
from training.publishing import report
from training.publishing.advice import advice
from training.publishing.card import card, compare_with_float32
from training.publishing.export import export
from training.publishing.held_out import with_held_out
from training.publishing.quantize import CALIBRATED_ON, quantize, speed
from vaeserve.bundle.batched import encode
from vaeserve.bundle.cpus import usable_cpus
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import Draft, publish, read_bundle
from vaeserve.bundle.manifest import Manifest
from vaeserve.bundle.repository import open_engine


def publish_checkpoint(
    checkpoint: Path,
    data: Images,
    models: Path,
    history: Sequence[dict[str, Any]],
    say: Say = print,
    *,
    iwae_k: int = IWAE_K,
    iwae_n: int = IWAE_N,
) -> Path:
    """Publish a checkpoint as the next version in the repository `models`; returns the bundle's folder.

    Figures and pictures come from the draft's own graphs, so what is published is what was measured. The
    run's folder keeps a copy for its report. `history`: the lines of metrics.jsonl; `iwae_k`, `iwae_n`:
    samples and images of the importance-weighted bound. Raises ExportError when the graphs do not compute
    what torch computes; then nothing is published.
    """
    with tempfile.TemporaryDirectory() as work:
        say("exporting to ONNX and comparing with torch …")
        parts = Parts(say)
        draft = export(checkpoint, data, Path(work), parts)
        seed = _seed(draft.manifest)
        draft = with_held_out(draft, data, seed, parts)
        engine = Engine(draft.bundle(), threads=usable_cpus())
        evaluation = evaluate(engine, data, parts, seed=seed, iwae_k=iwae_k, iwae_n=iwae_n)
        say("drawing the pictures …")
        _write_card(draft, engine, data, evaluation, history, parts)
        manifest = draft.manifest.model_copy(update={"metrics": evaluation.metrics})
        bundle = publish(models, manifest.name, Draft(draft.folder, manifest))
    step = draft.manifest.training.config["step"] if draft.manifest.training else 0
    report.keep(checkpoint.parents[1], bundle, step, data, evaluation)
    return bundle


def complete(path: Path, data: Images, models: Path, say: Say = print) -> Path:
    """Publish the bundle in folder `path` as the next version of its name, with a new calibration and map.

    `data` is the data that the bundle was trained on. Returns the new folder in the repository `models`.
    """
    manifest = read_bundle(path).manifest
    _check_data(manifest, data)
    with tempfile.TemporaryDirectory() as work:
        for name in manifest.files:
            shutil.copyfile(path / name, Path(work) / name)
        draft = Draft(Path(work), manifest.model_copy(update={"labels": manifest.labels or data.label_names}))
        return publish(models, manifest.name, with_held_out(draft, data, _seed(manifest), Parts(say)))


def publish_int8(path: Path, data: Images, models: Path, say: Say = print) -> Path:
    """Publish the bundle in folder `path` in eight-bit integers, as the model `<name>-int8`.

    It is evaluated like the original, and its card compares the two. `data` is the data that the bundle was
    trained on. Returns the new folder in the repository `models`.
    """
    exact = open_engine(path)
    bundle, manifest = exact.bundle, exact.manifest
    if manifest.likelihood is None or manifest.training is None:
        raise DataError(
            f"{manifest.reference} does not record how it was trained; quantize a model made by vae-train"
        )
    _check_data(manifest, data)
    seed = _seed(manifest)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for name in manifest.files:
            if Path(name).suffix in (".onnx", ".npz"):
                shutil.copyfile(path / name, folder / name)
        say("quantizing …")
        rows = np.sort(np.random.default_rng(seed).permutation(data.split.train)[:CALIBRATED_ON])
        images = model_inputs(manifest.likelihood.kind, data, rows, seed)[:]
        latents = encode(exact, images).sample(seed)
        parts = Parts(say)
        draft = with_held_out(quantize(Draft(folder, manifest), images, latents), data, seed, parts)
        engine = Engine(draft.bundle())
        faster = speed(exact, engine)
        metrics = manifest.metrics
        k, n = (metrics["iwae"].k or IWAE_K, metrics["iwae"].n) if "iwae" in metrics else (IWAE_K, IWAE_N)
        evaluation = evaluate(engine, data, parts, seed=seed, iwae_k=k, iwae_n=n)
        say("drawing the pictures …")
        size = _graph_bytes(folder) / _graph_bytes(bundle.path)
        comparison = compare_with_float32(manifest, evaluation.metrics, size, faster)
        _write_card(draft, engine, data, evaluation, (), parts, comparison)
        final = draft.manifest.model_copy(update={"metrics": evaluation.metrics})
        return publish(models, final.name, Draft(folder, final))


def _check_data(manifest: Manifest, data: Images) -> None:
    """Raise DataError unless the model was trained on these images: others are not known to be held out."""
    if manifest.training and manifest.training.data.digest != data.digest:
        raise DataError(
            f"{manifest.reference} was trained on other images; give the data that it was trained on"
        )


def _write_card(
    draft: Draft,
    engine: Engine,
    data: Images,
    evaluation: Evaluation,
    history: Sequence[dict[str, Any]],
    parts: Parts,
    comparison: str = "",
) -> None:
    """Write README.md and its pictures into the draft's folder."""
    drawn = pictures.draw_all(engine, data, data.split.test, evaluation.means, evaluation.kl, parts)
    if history:
        with parts.optional("curves.png"):
            drawn["curves.png"] = pictures.curves(history)
    if data.shape[2] == 3:
        drawn = dict(pictures.as_webp(name, picture) for name, picture in drawn.items())
    for name, picture in drawn.items():
        (draft.folder / name).write_bytes(picture)
    advised: tuple[str, ...] = ()
    with parts.optional("advice"):
        advised = advice(draft.manifest, evaluation.metrics, data, history)
    for line in advised:
        parts.say(f"advice: {line}")
    text = card(draft.manifest, data, evaluation.metrics, list(drawn), comparison, advised, parts.missing)
    (draft.folder / "README.md").write_text(text, encoding="utf-8")


def _seed(manifest: Manifest) -> int:
    """The seed of the run, which also fixes the noise of the evaluation."""
    return int(manifest.training.config["seed"]) if manifest.training else 0


def _graph_bytes(folder: Path) -> int:
    return sum((folder / f"{side}.onnx").stat().st_size for side in ("encoder", "decoder"))
