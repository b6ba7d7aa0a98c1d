"""From a checkpoint to a published bundle: export a draft, evaluate that draft, draw its card, publish."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.runtime.bundle import Draft, publish
from service.runtime.cpus import usable_cpus
from service.runtime.engine import Engine
from training import pictures, report
from training.card import card
from training.data import Images, Say
from training.evaluate import Evaluation, evaluate
from training.export import export


def release(
    checkpoint: Path, data: Images, models: Path, history: Sequence[dict[str, Any]], say: Say = print
) -> Path:
    """Publish the checkpoint as the next version in the repository `models`; returns the bundle's folder.

    The figures and pictures come from the draft's own graphs, so what is published is what was measured;
    they are also kept in the run's folder for its report. `history`: the lines of metrics.jsonl. Raises
    ExportError when the graphs do not compute what torch computes; then nothing is published.
    """
    with tempfile.TemporaryDirectory() as work:
        say("exporting to ONNX and comparing with torch …")
        draft = export(checkpoint, data, Path(work))
        engine = Engine(draft.bundle(), threads=usable_cpus())
        evaluation = evaluate(engine, data, seed=_seed(draft), say=say)
        say("drawing the pictures …")
        _write_card(draft, engine, data, evaluation, history)
        manifest = draft.manifest.model_copy(update={"metrics": evaluation.metrics})
        bundle = publish(models, manifest.name, Draft(draft.folder, manifest))
    step = draft.manifest.training.config["step"] if draft.manifest.training else 0
    report.keep(checkpoint.parents[1], bundle, step, data, evaluation)
    return bundle


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
