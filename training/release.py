"""From a checkpoint to a published bundle: export a draft, evaluate that draft, draw its card, publish."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from service.runtime.bundle import Draft, publish
from service.runtime.cpus import usable_cpus
from service.runtime.engine import Engine
from training import report
from training.data import Images
from training.evaluate import evaluate
from training.export import export


def release(
    checkpoint: Path,
    data: Images,
    models: Path,
    history: Sequence[dict[str, Any]],
    say: Callable[[str], None] = print,
) -> Path:
    """Publish the checkpoint as the next version in the repository `models`; returns the bundle's folder.

    The figures and pictures come from the draft's own graphs, so what is published is what was measured.
    Raises ExportError when the graphs do not compute what torch computes; then nothing is published.
    """
    with tempfile.TemporaryDirectory() as work:
        say("exporting to ONNX and comparing with torch …")
        draft = export(checkpoint, data, Path(work))
        engine = Engine(draft.bundle(), threads=usable_cpus())
        say("evaluating the exported graphs on the test images …")
        evaluation = evaluate(engine, data, seed=_seed(draft))
        report.write(draft.folder, engine, data, evaluation, history)
        manifest = draft.manifest.model_copy(update={"metrics": evaluation.metrics})
        return publish(models, manifest.name, Draft(draft.folder, manifest))


def _seed(draft: Draft) -> int:
    """The run's seed, which also draws the evaluation's noise."""
    return int(draft.manifest.training.config["seed"]) if draft.manifest.training else 0
