"""Shows the progress of a run: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """Receives each step, and the line of metrics.jsonl of each evaluation."""

    def step(
        self, step: int, epoch: int, distortion: float, rate: float, images_per_second: float
    ) -> None: ...

    def evaluated(self, line: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...


def stderr(text: str) -> None:
    """Print a line of the log."""
    print(text, file=sys.stderr, flush=True)


class Lines:
    """One plain line per evaluation, for logs; `out` takes each."""

    def __init__(self, epochs: int, steps: int, out: Any = stderr) -> None:
        self.epochs, self.steps = epochs, steps
        self.out = out
        self.first, self.started = 0, time.monotonic()

    def step(self, step: int, epoch: int, distortion: float, rate: float, images_per_second: float) -> None:
        self.first = self.first or step

    def evaluated(self, line: Mapping[str, Any]) -> None:
        done, left = line["step"] - self.first + 1, self.steps - line["step"]
        seconds = left * (time.monotonic() - self.started) / max(done, 1)
        self.out(describe(line, self.epochs) + (f"  {duration(seconds)} left" if left else ""))

    def note(self, text: str) -> None:
        self.out(text)


class Silent(Lines):
    """Shows nothing: for all processes but the first."""

    def __init__(self) -> None:
        super().__init__(0, 0, lambda text: None)


class Bar:
    """A rich progress bar with the lines above it."""

    REDRAW = 0.1  # seconds: drawing at every step would slow small networks down

    def __init__(self, bar: Any, task: Any, epochs: int) -> None:
        self.bar, self.task, self.epochs = bar, task, epochs
        self.drawn = 0.0

    def step(self, step: int, epoch: int, distortion: float, rate: float, images_per_second: float) -> None:
        if (now := time.monotonic()) - self.drawn < self.REDRAW:
            return
        self.drawn = now
        self.bar.update(
            self.task,
            completed=step,
            description=f"epoch {epoch}/{self.epochs}",
            figures=f"{images_per_second:,.0f} images/s  distortion {distortion:.1f}  rate {rate:.1f}",
        )

    def evaluated(self, line: Mapping[str, Any]) -> None:
        self.bar.update(self.task, completed=line["step"])
        self.bar.console.print(describe(line, self.epochs), highlight=False)

    def note(self, text: str) -> None:
        self.bar.console.print(text, highlight=False, markup=False)


@contextmanager
def shown(epochs: int, steps: int) -> Iterator[Progress]:
    """A bar if stderr is a terminal and rich is installed, else lines on stderr."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
    except ImportError:  # a rented machine with torch and numpy only
        console = None
    else:
        console = Console(stderr=True)
    if console is None or not console.is_terminal:
        yield Lines(epochs, steps)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
    with RichProgress(*columns, TimeRemainingColumn(), console=console) as bar:
        yield Bar(bar, bar.add_task("starting", total=steps, figures=""), epochs)


def duration(seconds: float) -> str:
    """A time for people: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def describe(line: Mapping[str, Any], epochs: int) -> str:
    """One line of metrics.jsonl for people."""
    train, held_out = line["train"], line["validation"]
    skipped = f"  {train['skipped']} steps skipped" if train["skipped"] else ""
    return (
        f"epoch {line['epoch']:g}/{epochs}  step {line['step']}  {line['images_per_second']:,.0f} images/s  "
        f"train {train['distortion']:.2f} + {train['rate']:.2f}  "
        f"validation ELBO {held_out['elbo']:.2f}  rate {held_out['rate']:.2f}  "
        f"MSE {held_out['mse']:.5f}{skipped}"
    )
