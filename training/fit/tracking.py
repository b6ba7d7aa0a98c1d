"""Writes the metrics of a run for TensorBoard too: `tensorboard --logdir runs`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.config import ConfigError


class TensorBoard:
    """Writes every number of an evaluation's line as a scalar, for instance `validation/elbo`."""

    def __init__(self, run: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("--tensorboard needs TensorBoard: pip install -e '.[tensorboard]'") from error
        # Hides what a crashed run wrote about steps that are now repeated.
        self.writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def evaluated(self, line: Mapping[str, Any]) -> None:
        for name, value in _flat(line):
            self.writer.add_scalar(name, value, line["step"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def _flat(line: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """{"train": {"rate": 1}} → [("train/rate", 1)], without values that are not numbers."""
    found: list[tuple[str, float]] = []
    for key, value in line.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            found.append((prefix + key, value))
    return found
