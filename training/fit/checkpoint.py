"""A run's folder: checkpoints and metrics, written so that a crash at any moment leaves a good state.

The folder holds `config.json`, `metrics.jsonl` and `checkpoints/step-00001200/{state.pt, state.json}`. A
checkpoint is written into a temporary folder next to the others, synced to disk and renamed. The last two and
the best are kept. Every `state.json` names the best, so no pointer can go stale.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from training.config import TrainConfig
from training.model.networks import VAE, build
from vaeserve.bundle.atomic import move_into_place, write_atomically

KEEP: Final = 2


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the message says what to do."""


def save(run: Path, tensors: Mapping[str, Any], state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of `state["step"]`, then remove those that are neither recent nor best.

    `state["best"]` is None or says in `step` which checkpoint to keep. Raises CheckpointError, for
    instance on a full disk, and leaves the older checkpoints as they were.
    """
    folder = run / "checkpoints"
    path = folder / _name(state["step"])
    draft = folder / f".{path.name}.tmp"
    try:
        with _reporting(path):
            draft.mkdir(parents=True)
            with (draft / "state.pt").open("wb") as file:
                torch.save(dict(tensors), file)
            (draft / "state.json").write_text(json.dumps(state, indent=2) + "\n")
            move_into_place(draft, path)
    except CheckpointError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    _remove_old(folder, state)
    return path


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return max((run / "checkpoints").glob("step-*"), default=None)


def best(run: Path) -> Path | None:
    """The checkpoint with the best validation ELBO, or None before there is one."""
    newest = latest(run)
    found = read_state(newest)["best"] if newest else None
    return run / "checkpoints" / _name(found["step"]) if found else None


def clean(run: Path) -> None:
    """Remove what an interrupted `save` or `write` left behind."""
    for draft in (*(run / "checkpoints").glob(".step-*.tmp"), *run.glob(".*.json*-*")):
        shutil.rmtree(draft)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The readable half: step, epoch, config, data, validation, best. Raises CheckpointError."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint} is not a checkpoint: {error}. Remove it to resume from the one before."
        ) from error
    return state


def read_tensors(checkpoint: Path, device: torch.device | None = None) -> dict[str, Any]:
    """The other half, on `device` (the CPU if None). Never unpickles code. Raises CheckpointError."""
    try:
        tensors: dict[str, Any] = torch.load(
            checkpoint / "state.pt", map_location=device or "cpu", weights_only=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint}/state.pt cannot be read: {error}. Remove it to resume from the one before."
        ) from error
    return tensors


def load(checkpoint: Path) -> tuple[VAE, dict[str, Any]]:
    """The network with its averaged (EMA) weights and σ², in evaluation mode on the CPU; and the state.

    Raises CheckpointError.
    """
    state = read_state(checkpoint)
    network = build(TrainConfig.from_dict(state["config"]))
    averaged: dict[str, Tensor] = read_tensors(checkpoint)["ema"]
    network.load_state_dict(averaged)
    return network.eval(), state


def append_metrics(run: Path, line: dict[str, Any]) -> None:
    """One JSON line per evaluation. Raises CheckpointError."""
    path = run / "metrics.jsonl"
    with _reporting(path), path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def trim_metrics(run: Path, step: int) -> list[dict[str, Any]]:
    """The lines up to `step`; later ones, of steps that a crash undid, are dropped from the file too."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    kept = []
    for text in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a line that the crash cut off
            line = json.loads(text)
            if line["step"] <= step:
                kept.append(line)
    write(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


def write(path: Path, text: str) -> None:
    """Replace a small file in one step. Raises CheckpointError."""
    with _reporting(path):
        write_atomically(path, text)


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Turn a failed write, as on a full disk, into a CheckpointError that says what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        raise CheckpointError(
            f"cannot write {path}: {error}. Free some space, then use --resume; older checkpoints are safe."
        ) from error


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _remove_old(folder: Path, state: Mapping[str, Any]) -> None:
    keep = {path.name for path in sorted(folder.glob("step-*"))[-KEEP:]}
    if state["best"]:
        keep.add(_name(state["best"]["step"]))
    for path in folder.glob("step-*"):
        if path.name not in keep:
            shutil.rmtree(path)
