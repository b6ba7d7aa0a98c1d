"""The bulk commands: from the arguments to the output, with progress and a list of failures."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vaeserve.client.bulk import runner, samples, tables, unusual
from vaeserve.client.bulk.job import Columns, Job, Task, opened
from vaeserve.client.bulk.runner import Requests
from vaeserve.client.bulk.sources import Entry, find
from vaeserve.client.client import Client
from vaeserve.client.errors import ClientError
from vaeserve.client.formats import SUFFIXES
from vaeserve.client.options import BulkService

SHOWN = 20  # failures that are printed; the side file has all


@dataclass(frozen=True)
class Collection:
    """The arguments of a bulk command. Its methods return how many images or rows failed."""

    command: str
    sources: list[str]
    output: Path
    service: BulkService
    options: dict[str, Any] = field(default_factory=dict)  # of this command alone; None: not given

    def encode(self) -> int:
        """The posterior mean and logvar of each image."""

        def call(client: Client, job: Job, first: int, files: Sequence[bytes]) -> Columns:
            posterior = client.encode(files)
            return {"mean": posterior.mean, "logvar": posterior.logvar}

        return self._images(call, partial(tables.merge, main="mean"))

    def score(self, sheet: Path | None = None) -> int:
        """How well the model explains each image, and how unusual that is; `sheet`: a picture of the most."""

        def call(client: Client, job: Job, first: int, files: Sequence[bytes]) -> Columns:
            return client.score(files, k=self.options["k"], seed=job.seed, first=first).columns()

        def merge(job: Job, output: Path) -> None:
            tables.merge(job, output, main="elbo")
            if sheet:
                with Client(self.service.url, api_key=self.service.api_key, model=job.model) as client:
                    unusual.draw(client, job, sheet)
                print(f"{sheet}: the most unusual images, first the most")

        return self._images(call, merge)

    def reconstruct(self) -> int:
        """The reconstruction of each image, and its mean squared error, which is also printed."""

        def call(client: Client, job: Job, first: int, files: Sequence[bytes]) -> Columns:
            found = client.reconstruct(files)
            return {"images": found.images, "error": found.error.astype(np.float32)}

        def merge(job: Job, output: Path) -> None:
            if output.suffix.lower() == ".png":
                samples.merge(job, output)
            else:
                tables.merge(job, output, main="images")
            for names, columns in tables.named(job, ["error"]):
                for name, error in zip(names, columns["error"], strict=True):
                    print(f"{error:.6f}  {name}")

        return self._images(call, merge)

    def decode(self, latents: NDArray[Any]) -> int:
        """The image of each row of latents [n, *latent]."""

        def requests(client: Client, job: Job) -> Requests:
            return runner.latents(job, lambda first, rows: {"images": client.decode(rows)}, latents)

        samples.check(self.output, 0 if self._folder.exists() else len(latents))
        return self._run(len(latents), requests, samples.merge)

    def sample(self, n: int) -> int:
        """`n` samples, which do not depend on how they are divided into requests."""
        options = {name: value for name, value in self.options.items() if name not in ("n", "seed")}

        def requests(client: Client, job: Job) -> Requests:
            def call(rows: range) -> Columns:
                found = client.sample(len(rows), seed=job.seed, first=rows.start, **options)
                return {"images": found.images}

            return runner.samples(job, call)

        samples.check(self.output, 0 if self._folder.exists() else n)
        return self._run(n, requests, samples.merge)

    def _images(
        self,
        call: Callable[[Client, Job, int, Sequence[bytes]], Columns],
        merge: Callable[[Job, Path], None],
    ) -> int:
        if self.output.suffix.lower() == ".parquet":
            tables.check_parquet()
        return self._run(
            find(self.sources), lambda client, job: runner.files(job, partial(call, client, job)), merge
        )

    def _run(
        self,
        found: Iterable[Entry] | int,
        requests: Callable[[Client, Job], Requests],
        merge: Callable[[Job, Path], None],
    ) -> int:
        """Do the job, write its output and report; `found` is as in `opened`."""
        if not self.output.parent.is_dir():
            raise FileNotFoundError(f"No such file or directory: {self.output.parent}")
        task = Task(self.command, self.sources, {"model": self.service.model, **self.options})
        with opened(self._folder, task, found, self._reference) as job:
            if not job.count:
                raise ClientError(f"no images ({', '.join(sorted(SUFFIXES))}) in {', '.join(self.sources)}")
            self._send(job, requests)
            failed = tables.write_failures(job, self.output)
            if failed < job.count:
                merge(job, self.output)
            job.remove()
        self._report(job, failed)
        return failed

    @property
    def _folder(self) -> Path:
        return self.output.with_name(f"{self.output.name}.parts")

    def _send(self, job: Job, requests: Callable[[Client, Job], Requests]) -> None:
        """Request everything that has no result yet, with a progress bar on a terminal."""
        console = Console(stderr=True)
        if job.done:
            print(f"resuming at {job.done:,} of {job.count:,}", file=sys.stderr)
        with (
            # The runner retries instead, because it knows of all requests in flight.
            Client(self.service.url, api_key=self.service.api_key, model=job.model, retries=0) as client,
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

            runner.run(
                job,
                requests(client, job),
                concurrency=self.service.concurrency,
                patience=self.service.patience,
                advance=advance,
            )

    def _reference(self) -> str:
        """name@version of the model that answers every request of the job."""
        wanted = self.service.model
        with self.service.client() as client:
            models = client.models()["models"]
        there: list[str] = []
        for each in models:
            name, newest = each["name"], max(each["versions"])
            references = [f"{name}@{version}" for version in each["versions"]]
            if wanted in references:
                return str(wanted)
            if wanted == name or (wanted is None and each["default"]):
                return f"{name}@{newest}"
            there += references
        raise ClientError(f"unknown-model: choose one with --model; the service has {', '.join(there)}")

    def _report(self, job: Job, failed: int) -> None:
        """Print the failures last, where they are seen."""
        rows = job.count - failed
        if self.command == "sample":
            print(f"{self.output}: {rows:,} images, seed {job.seed}, {job.model}")
        elif rows:
            print(f"{self.output}: {rows:,} of {job.count:,} images, {job.model}")
        if failed:
            path = tables.failures_path(self.output)
            with path.open(encoding="utf-8") as lines:
                for line in islice(lines, SHOWN):
                    failure = json.loads(line)
                    print(f"failed: {failure['path']}: {failure['reason']}", file=sys.stderr)
        if failed > SHOWN:
            print(f"failed: {failed - SHOWN:,} more, see {path}", file=sys.stderr)
