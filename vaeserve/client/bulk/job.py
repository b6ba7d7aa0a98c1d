"""What a bulk job has on disk beside its output, so that it survives anything: `<output>.parts/`.

    entries.jsonl              what was found, in order; not there for samples, which are numbers
    job.json                   what was asked, which model answers, and the seed; written after the above
    <first>-<last>.npz         the results of the entries [first, last), one part after the other

A part is written beside its name, synced and renamed: it is there whole, or not at all. Parts are made in
order, so what is done is always a beginning of the list, without holes or anything twice, and the name
of the last part says where to go on.
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
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeserve.client.bulk.sources import Entry
from vaeserve.client.errors import ClientError

FORMAT = 1
PARTS = "??????????-??????????.npz"
Columns = Mapping[str, NDArray[Any]]  # one row of each for each image


class Failure(NamedTuple):
    """An entry that has no result, and why."""

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
    """What was asked for; a job goes on only for the same."""

    command: str
    sources: list[str]
    options: dict[str, Any]


class Job:
    """The folder of a job. Open it with `opened`."""

    def __init__(self, folder: Path, task: Task, *, model: str, seed: int, count: int) -> None:
        self.folder = folder
        self.task = task
        self.model = model  # name@version: all rows come from one model, also those of a later run
        self.seed = seed  # of what is drawn: the one that was asked for, else one made up at the beginning
        self.count = count

    @property
    def done(self) -> int:
        """How many entries have their result, or their failure."""
        return max((stop for _, stop, _ in self._parts()), default=0)

    def entries(self, start: int) -> Iterator[Entry]:
        with (self.folder / "entries.jsonl").open(encoding="utf-8") as lines:
            for line in islice(lines, start, None):
                yield Entry(*json.loads(line))

    def add(self, part: Part) -> None:
        """Keep the results of the next entries."""
        failed = np.frombuffer(json.dumps(part.failed).encode(), np.uint8)
        with whole(self.folder / f"{part.start:010d}-{part.stop:010d}.npz") as file:
            np.savez(file, allow_pickle=False, entries=part.entries, failed=failed, **part.columns)

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[Part]:
        """All parts in order, with these columns or with all."""
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

    def remove(self) -> None:
        """Forget the job, in one step: what is half removed must not look like a job."""
        rest = self.folder.with_suffix(".removed")
        os.replace(self.folder, rest)
        shutil.rmtree(rest)

    def _parts(self) -> list[tuple[int, int, Path]]:
        found: list[tuple[int, int, Path]] = []
        for path in sorted(self.folder.glob(PARTS)):
            start, stop = map(int, path.stem.split("-"))
            if start != (found[-1][1] if found else 0):
                raise ClientError(
                    f"{self.folder} has lost the part before {path.name}; remove it and start anew"
                )
            found.append((start, stop, path))
        return found


@contextmanager
def opened(folder: Path, task: Task, found: Iterable[Entry] | int, model: Callable[[], str]) -> Iterator[Job]:
    """The job of this folder: the one that was begun, or a new one on what is `found`, for that `model`.

    `found` is entries, or how many there are where each is only a number. ClientError if the folder belongs
    to another task, or another process is at it. If there is no part yet when it ends, nothing stays behind.
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
                with whole(path) as file:
                    file.write(json.dumps(content, indent=1).encode())
            except BaseException:
                shutil.rmtree(folder)  # nothing was done yet
                raise
        record = json.loads(path.read_bytes())
        begun = Task(record["command"], record["sources"], record["options"])
        if record["format"] != FORMAT or begun != task:
            raise ClientError(
                f"{folder} holds another job ({begun.command} {' '.join(begun.sources)}, begun with "
                f"{begun.options}); repeat that command, remove the folder, or give another -o"
            )
        for half in folder.glob("*.new"):
            half.unlink()
        try:
            yield Job(folder, task, model=record["model"], seed=record.get("seed", 0), count=record["count"])
        except BaseException:
            if not any(folder.glob(PARTS)):  # perhaps there is a mistake in the command: begin anew
                shutil.rmtree(folder, ignore_errors=True)
            raise


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when it is complete and on the disk."""
    draft = path.with_name(f"{path.name}.new")
    with draft.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _write_down(entries: Iterable[Entry], path: Path) -> int:
    count = 0
    with whole(path) as file:
        for entry in entries:
            # A file is its path alone; escapes keep names that are no Unicode.
            file.write(json.dumps(entry if entry.member else entry[:1]).encode() + b"\n")
            count += 1
    return count


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else works on the folder meanwhile; a lock that dies with its process."""
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
                f"another process is working on {path.parent}; wait for it, or stop it"
            ) from None
        yield
