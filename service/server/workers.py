"""Several worker processes behind one socket, and the supervisor that starts, replaces and stops them.

The supervisor opens the socket and keeps it for later workers. A worker accepts only once its models are
loaded, so no request reaches a worker that is not ready. Each worker has a pipe to the supervisor. The worker
reports once over it, that it serves or why it cannot. The supervisor closes it to stop the worker, so workers
never outlive their supervisor.
"""

import logging
import logging.config
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import monotonic
from typing import Any, NamedTuple

from prometheus_client import Counter, values
from prometheus_client.multiprocess import mark_process_dead

from service.server.acceptor import ABSENT, Board
from service.server.logs import log_config
from service.settings import GRACE, Settings

log = logging.getLogger(__name__)

LONG_LIVED = 10.0  # seconds: a worker that was ready for longer died for a new reason
FIRST_WAIT, LONGEST_WAIT = 0.5, 10.0  # seconds before a short-lived worker is started again
MAX_DEATHS = 6  # in a row with no worker ever ready: the supervisor gives up


class Report(NamedTuple):
    """Whether a worker serves; `text` is the banner, or the reason why it cannot."""

    ready: bool
    text: str


@dataclass(eq=False)
class Worker:
    """One process. `member` is its place, which its successor takes."""

    member: int
    process: BaseProcess
    pipe: Connection
    ready_since: float | None = None
    silent: bool = False  # it has reported, or the pipe is closed


@dataclass
class Place:
    """One of the supervisor's places for a worker; `due` is when the next worker starts there."""

    deaths: int = 0
    due: float = 0.0
    worker: Worker | None = None


def serve_with_workers(settings: Settings, listener: socket.socket, url: str) -> int:
    """Serve until a signal; returns the exit status."""
    logging.config.dictConfig(log_config(settings.log_level, settings.log_format))
    try:
        temporary = TemporaryDirectory(prefix="vaeserve-", ignore_cleanup_errors=True)
    except OSError as error:
        return _fail(f"cannot create a folder for the metrics ({error}); set TMPDIR to a writable folder")
    with temporary as folder, _signals() as signals:
        return _Supervisor(settings, listener, url, Path(folder), signals).run()


@dataclass
class _Supervisor:
    settings: Settings
    listener: socket.socket
    url: str
    folder: Path
    signals: socket.socket  # yields a byte for each signal received
    places: list[Place] = field(init=False)
    announced: bool = False
    stopping: bool = False
    hurried: bool = False  # stopping without draining
    deadline: float = float("inf")
    status: int = 0

    def run(self) -> int:
        share(self.folder, "supervisor")
        self._board = Board(self.folder, self.settings.processes())
        self._context = _context()
        self._restarts = Counter("vae_worker_restarts_total", "Workers that died", registry=None)
        self.places = [Place() for _ in range(self.settings.processes())]
        while True:
            for member, place in enumerate(self.places):
                if not (place.worker or self.stopping) and monotonic() >= place.due:
                    place.worker = self._start(member)
            if self.stopping and not self._workers():
                return self.status
            self._wait()

    def _workers(self) -> list[Worker]:
        return [place.worker for place in self.places if place.worker]

    def _start(self, member: int) -> Worker:
        ours, theirs = self._context.Pipe()
        arguments = (self.settings, self.listener, self.url, self.folder, member, theirs)
        process = self._context.Process(target=work, args=arguments, name=f"worker {member}")
        process.start()
        theirs.close()
        return Worker(member, process, ours)

    def _wait(self) -> None:
        """Wait for a signal, a report, the end of a worker or the next due time, and handle it."""
        pipes = {worker.pipe: worker for worker in self._workers() if not worker.silent}
        ends = {worker.process.sentinel: worker for worker in self._workers()}
        now = monotonic()
        due = [place.due for place in self.places if not (place.worker or self.stopping)]
        timeout = max(0.0, min([self.deadline, *due]) - now)
        happened = connection.wait(
            [self.signals, *pipes, *ends], None if timeout == float("inf") else timeout
        )
        for what in happened:
            if what is self.signals:
                for number in self.signals.recv(64):
                    self._on_signal(number)
            elif isinstance(what, Connection):
                self._on_report(pipes[what])
        for what in happened:
            if isinstance(what, int):
                self._on_end(ends[what])
        if monotonic() >= self.deadline:
            for worker in self._workers():
                worker.process.kill()

    def _on_report(self, worker: Worker) -> None:
        worker.silent = True
        try:
            report: Report = worker.pipe.recv()
        except (EOFError, OSError):
            return  # its sentinel will fire
        if report.ready:
            worker.ready_since = monotonic()
            if not self.announced and all(each.ready_since for each in self._workers()):
                self.announced = True
                print(report.text, flush=True)
        elif not self.announced:
            self.status = _fail(report.text) if not self.stopping else 1
            self._stop()
        else:
            log.error("worker %d cannot serve: %s", worker.member, report.text)

    def _on_end(self, worker: Worker) -> None:
        place = self.places[worker.member]
        worker.process.join()
        worker.pipe.close()
        place.worker = None
        self._board.publish(worker.member, ABSENT)
        mark_process_dead(worker.member, self.folder)  # type: ignore[no-untyped-call]
        if self.stopping:
            if worker.process.exitcode not in (0, -signal.SIGTERM):  # SIGTERM: it had not started yet
                self.status = 1
            return
        lived = worker.ready_since is not None and monotonic() - worker.ready_since >= LONG_LIVED
        place.deaths = 1 if lived else place.deaths + 1
        wait = 0.0 if place.deaths == 1 else min(LONGEST_WAIT, FIRST_WAIT * 2 ** (place.deaths - 2))
        place.due = monotonic() + wait
        how = _cause(worker.process.exitcode)
        if place.deaths >= MAX_DEATHS and not any(each.ready_since for each in self._workers()):
            self.status = _fail(
                f"workers keep exiting before they serve ({how}); read the log for the reason"
            )
            self._stop()
            return
        self._restarts.inc()
        log.error("worker %d %s; another starts in %.1f s", worker.member, how, wait)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGTERM and not self.stopping:
            for worker in self._workers():
                worker.process.terminate()
            self._end_within(self.settings.drain_seconds + GRACE + 5)
        elif not self.hurried:
            self._stop()
        elif number == signal.SIGINT:  # Ctrl-C again
            self.deadline = monotonic()

    def _stop(self) -> None:
        """Close the pipes, which stops the workers without draining."""
        self.hurried = True
        for worker in self._workers():
            worker.silent = True
            worker.pipe.close()
        self._end_within(GRACE + 5)

    def _end_within(self, seconds: float) -> None:
        self.stopping = True
        self.listener.close()  # else the kernel would take connections that no worker accepts
        self.deadline = monotonic() + seconds


def work(
    settings: Settings, listener: socket.socket, url: str, folder: Path, member: int, pipe: Connection
) -> None:
    """The main function of a worker: load, report, serve until SIGTERM or until the pipe is closed."""
    from service.server.server import serve_as_worker  # the supervisor does not need these imports

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the supervisor passes it on
    share(folder, str(member))

    def stop_with_the_supervisor(stop: Callable[[], None]) -> None:
        try:
            pipe.recv()
        except (EOFError, OSError):
            stop()

    def started(stop: Callable[[], None]) -> None:
        Thread(target=stop_with_the_supervisor, args=(stop,), daemon=True, name="supervisor").start()

    board = Board(folder, settings.processes())
    serve_as_worker(
        settings, listener, url, board, member, started, lambda *report: pipe.send(Report(*report))
    )
    supervisor = multiprocessing.parent_process()
    if supervisor and not supervisor.is_alive():  # it was killed and could not clean up
        shutil.rmtree(folder, ignore_errors=True)


def share(folder: Path, member: str) -> None:
    """Keep the metrics of this process in `folder` under the name `member`. Call it before any metric exists.

    A worker that replaces a dead one continues its counters: no counter falls, and no file is left over.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: member)  # type: ignore[no-untyped-call]


def _context() -> Any:  # the stubs of these two have no common base
    """The way to start workers: fork server on Linux, spawn elsewhere.

    Forking a process that has only done the imports takes a tenth of the time, and most memory is shared.
    Apple's libraries do not survive forks.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["service.server.server"])
    return context


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket that yields a byte for each SIGTERM and SIGINT, so that `connection.wait` covers them."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = {
        number: signal.signal(number, lambda number, _: theirs.send(bytes([number])))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield ours
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ours.close()
        theirs.close()


def _cause(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _fail(reason: str) -> int:
    print(f"vae-serve: {reason}", file=sys.stderr)
    return 1
