"""A bulk command from its words to its output: what was found, how far it is, what failed."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vaeserve.client.bulk import runner as bulk
from vaeserve.client.bulk import samples as drawn
from vaeserve.client.bulk import tables
from vaeserve.client.bulk.job import Columns, Job, Task, opened, whole
from vaeserve.client.bulk.sources import SUFFIXES, Entry, find
from vaeserve.client.client import Client
from vaeserve.client.errors import ClientError
from vaeserve.client.png import png

SHOWN = 20  # failures that are printed; the side file has all


@dataclass(frozen=True)
class Collection:
    """What the user typed. The methods that take images return how many of them failed."""

    command: str
    sources: list[str]
    output: Path
    url: str
    api_key: str | None
    model: str | None  # name or name@version; None: the service's default
    concurrency: int
    patience: float  # seconds
    options: dict[str, Any] = field(default_factory=dict)  # of this command alone; None: not said

    def embed(self) -> int:
        """mean and logvar of each image."""

        def call(client: Client, job: Job, first: int, files: Sequence[bytes]) -> Columns:
            posterior = client.encode(files)
            return {"mean": posterior.mean, "logvar": posterior.logvar}

        return self._run(call, main="mean")

    def judge(self) -> int:
        """How well the model explains each image, and how unusual that is."""

        def call(client: Client, job: Job, first: int, files: Sequence[bytes]) -> Columns:
            found = client.score(files, k=self.options["k"], seed=job.seed, first=first)
            return found.columns()

        return self._run(call, main="elbo")

    def rebuild(self) -> int:
        """The reconstruction of each image, and its mean squared error, which is printed too."""

        def call(client: Client, job: Job, first: int, files: Sequence[bytes]) -> Columns:
            again = client.reconstruct(files)
            return {"images": again.images, "error": again.error.astype(np.float32)}

        def tell(job: Job) -> None:
            for names, columns in tables.named(job, ["error"]):
                for name, error in zip(names, columns["error"], strict=True):
                    print(f"{error:.6f}  {name}")

        return self._run(call, main="images", tell=tell)

    def draw(self, n: int) -> None:
        """`n` samples. Which ones does not depend on how they are cut into requests."""
        drawn.check(self.output, 0 if self._folder.exists() else n)
        asked = {name: value for name, value in self.options.items() if name not in ("n", "seed")}
        with self._opened(n) as job:

            def call(client: Client, rows: range) -> Columns:
                found = client.sample(len(rows), seed=job.seed, first=rows.start, **asked)
                return {"images": found.images}

            self._ask(job, lambda client, **how: bulk.draw(job, partial(call, client), **how))
            drawn.merge(job, self.output)
            job.remove()
        print(f"{self.output}: {job.count:,} images, seed {job.seed}, {job.model}")

    def _run(
        self,
        call: Callable[[Client, Job, int, Sequence[bytes]], Columns],
        *,
        main: str,
        tell: Callable[[Job], None] | None = None,
    ) -> int:
        if self.output.suffix.lower() == ".parquet":
            tables.check_parquet()
        with self._opened(find(self.sources)) as job:
            if job.count:
                self._ask(job, lambda client, **how: bulk.run(job, partial(call, client, job), **how))
                rows, failed = self._write(job, main)
                if tell:
                    tell(job)
            job.remove()
        if not job.count:
            raise ClientError(f"no images ({', '.join(sorted(SUFFIXES))}) in {', '.join(self.sources)}")
        self._report(rows, job.count, failed, job.model)
        return failed

    @property
    def _folder(self) -> Path:
        return self.output.with_name(f"{self.output.name}.parts")

    @contextmanager
    def _opened(self, found: Iterable[Entry] | int) -> Iterator[Job]:
        if not self.output.parent.is_dir():
            raise FileNotFoundError(f"No such file or directory: {self.output.parent}")
        task = Task(self.command, self.sources, {"model": self.model, **self.options})
        with opened(self._folder, task, found, self._reference) as job:
            yield job

    def _ask(self, job: Job, run: Callable[..., None]) -> None:
        """Everything that has no result yet, with a bar on a terminal."""
        console = Console(stderr=True)
        if job.done:
            print(f"going on at {job.done:,} of {job.count:,}", file=sys.stderr)
        with (
            # Trying again is the conductor's: it knows what the other requests learn.
            Client(self.url, api_key=self.api_key, model=job.model, retries=0) as client,
            Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
                disable=not console.is_terminal,
            ) as progress,
        ):
            bar = progress.add_task("", total=job.count, completed=job.done, rate="")

            def advance(images: int) -> None:
                progress.advance(bar, images)
                speed = progress.tasks[0].speed
                progress.update(bar, rate=f"{speed:,.0f} images/s" if speed else "")

            run(client, concurrency=self.concurrency, patience=self.patience, advance=advance)

    def _write(self, job: Job, main: str) -> tuple[int, int]:
        if self.output.suffix.lower() != ".png":
            return tables.merge(job, self.output, main)
        failed = tables.write_failures(job, self.output)
        images = [columns[main] for _, columns in tables.named(job, [main])]
        if images:
            with whole(self.output) as file:
                file.write(png(np.concatenate(images)))
        return sum(map(len, images)), failed

    def _reference(self) -> str:
        """name@version of the model that will answer: all rows of a job come from one."""
        with Client(self.url, api_key=self.api_key) as client:
            models = client.models()["models"]
        there: list[str] = []
        for each in models:
            name, newest = each["name"], max(each["versions"])
            references = [f"{name}@{version}" for version in each["versions"]]
            if self.model in references:
                return str(self.model)
            if self.model == name or (self.model is None and each["default"]):
                return f"{name}@{newest}"
            there += references
        raise ClientError(f"unknown-model: name one with --model; the service has {', '.join(there)}")

    def _report(self, rows: int, count: int, failed: int, model: str) -> None:
        """Failures come last, where they are seen."""
        if rows:
            print(f"{self.output}: {rows:,} of {count:,} images, {model}")
        if failed:
            path = tables.failures_path(self.output)
            with path.open(encoding="utf-8") as lines:
                for line in islice(lines, SHOWN):
                    failure = json.loads(line)
                    print(f"failed: {failure['path']}: {failure['reason']}", file=sys.stderr)
            if failed > SHOWN:
                print(f"failed: {failed - SHOWN:,} more, see {path}", file=sys.stderr)
