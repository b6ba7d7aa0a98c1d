"""The folder of a bulk job, `<output>.parts/`, from which an interrupted job resumes.

    entries.jsonl              the images that were found, in order; rows of samples and latents are numbers
    job.json                   the task, the model that answers, and the seed; written after the above
    <first>-<last>.npz         the results of the entries [first, last), one part after the other

Parts are written atomically and in order. What is done is therefore always a beginning of the list, without
holes or duplicates, and the name of the last part says where to resume.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeserve.client.bulk.sources import Entry
from vaeserve.client.errors import ClientError
from vaeserve.client.files import atomic_write

FORMAT = 1
PARTS = "??????????-??????????.npz"
Columns = Mapping[str, NDArray[Any]]  # one row of each for each image


class Failure(NamedTuple):
    """An entry without a result, and the reason."""

    entry: int
    reason: str


class Part(NamedTuple):
    """The results of the entries [start, stop): rows for those in `entries`, and failures for the others."""

    start: int
    stop: int
    entries: NDArray[np.int64]
    columns: Columns
    failed: list[Failure]


@dataclass(frozen=True)
class Task:
    """The arguments of a command. A job resumes only for the same task."""

    command: str
    sources: list[str]
    options: dict[str, Any]


class Job:
    """The folder of a job. Open it with `opened`."""

    def __init__(self, folder: Path, task: Task, *, model: str, seed: int, count: int) -> None:
        self.folder = folder
        self.task = task
        self.model = model  # name@version: all rows come from this model, also after the job resumes
        self.seed = seed  # of the noise: given by the user, or chosen when the job starts
        self.count = count

    @property
    def done(self) -> int:
        """How many entries have a result or a failure."""
        return max((stop for _, stop, _ in self._parts()), default=0)

    def entries(self, start: int) -> Iterator[Entry]:
        """The images of the job, from number `start`."""
        with (self.folder / "entries.jsonl").open(encoding="utf-8") as lines:
            for line in islice(lines, start, None):
                yield Entry(*json.loads(line))

    def names(self) -> Iterator[str]:
        """The name of each entry in the output; rows that are numbers are `row 0`, `row 1`, …"""
        if (self.folder / "entries.jsonl").exists():
            return (entry.name for entry in self.entries(0))
        return (f"row {number}" for number in range(self.count))

    def add(self, part: Part) -> None:
        """Keep the results of the next entries."""
        failed = np.frombuffer(json.dumps(part.failed).encode(), np.uint8)
        with atomic_write(self.folder / f"{part.start:010d}-{part.stop:010d}.npz") as file:
            np.savez(file, allow_pickle=False, entries=part.entries, failed=failed, **part.columns)

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[Part]:
        """All parts in order, with these columns, or with all of them."""
        for start, stop, path in self._parts():
            with np.load(path, allow_pickle=False) as archive:
                there = [name for name in archive.files if name not in ("entries", "failed")]
                yield Part(
                    start,
                    stop,
                    archive["entries"],
                    {name: archive[name] for name in there if columns is None or name in columns},
                    [Failure(*each) for each in json.loads(archive["failed"].tobytes())],
                )

    def column(self, name: str) -> Iterator[NDArray[Any]]:
        """The column of each part that has rows."""
        return (part.columns[name] for part in self.parts([name]) if len(part.entries))

    @property
    def rows(self) -> int:
        """How many entries have a result."""
        return sum(len(part.entries) for part in self.parts(()))

    def remove(self) -> None:
        """Remove the job in one step, because half a folder would look like a job."""
        rest = self.folder.with_suffix(".removed")
        os.replace(self.folder, rest)
        shutil.rmtree(rest)

    def _parts(self) -> list[tuple[int, int, Path]]:
        found: list[tuple[int, int, Path]] = []
        for path in sorted(self.folder.glob(PARTS)):
            start, stop = map(int, path.stem.split("-"))
            if start != (found[-1][1] if found else 0):
                raise ClientError(
                    f"{self.folder} lacks the part before {path.name}; remove the folder and start again"
                )
            found.append((start, stop, path))
        return found


@contextmanager
def opened(folder: Path, task: Task, found: Iterable[Entry] | int, model: Callable[[], str]) -> Iterator[Job]:
    """The job of this folder: the interrupted one, or a new one on `found` for the model `model()`.

    `found` is the entries, or their number where entries are numbers. ClientError if the folder belongs to
    another task or another process. Nothing is left behind if the job ends before its first part.
    """
    shutil.rmtree(folder.with_suffix(".removed"), ignore_errors=True)
    folder.mkdir(exist_ok=True)
    with _alone(folder / "lock"):
        path = folder / "job.json"
        if not path.exists():
            try:
                asked = task.options.get("seed")
                seed = secrets.randbits(32) if asked is None else asked
                content = {"format": FORMAT, **asdict(task), "model": model(), "seed": seed}
                if not isinstance(found, int):
                    found = _write_down(found, folder / "entries.jsonl")
                content["count"] = found
                with atomic_write(path) as file:
                    file.write(json.dumps(content, indent=1).encode())
            except BaseException:
                shutil.rmtree(folder)
                raise
        record = json.loads(path.read_bytes())
        begun = Task(record["command"], record["sources"], record["options"])
        if record["format"] != FORMAT or begun != task:
            raise ClientError(
                f"{folder} holds another job ({begun.command} {' '.join(begun.sources)}, "
                f"with {begun.options}); repeat that command, remove the folder, or choose another -o"
            )
        for half in folder.glob("*.new"):
            half.unlink()
        try:
            yield Job(folder, task, model=record["model"], seed=record.get("seed", 0), count=record["count"])
        except BaseException:
            if not any(folder.glob(PARTS)):  # the command may be wrong, and must not block a corrected one
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _write_down(entries: Iterable[Entry], path: Path) -> int:
    count = 0
    with atomic_write(path) as file:
        for entry in entries:
            # A file is its path alone; escapes keep names that are not Unicode.
            file.write(json.dumps(entry if entry.member else entry[:1]).encode() + b"\n")
            count += 1
    return count


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lock the folder. The lock ends with its process."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ClientError(
                f"another process is working on {path.parent}; wait for it or stop it"
            ) from None
        yield
