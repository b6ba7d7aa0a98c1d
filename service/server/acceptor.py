"""Takes connections from a listener that several workers share, so that each has as many as the others.

Left to themselves, whoever wakes first takes all that wait: of 32 connections that come at once, one worker
of two often had nearly all, and its neighbour's CPU idled for as long as they stayed open. So the workers
tell each other how many they have, and one that has more than another leaves it a moment to come first.
"""

import asyncio
import logging
import mmap
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

# A moment, in seconds: another worker may be in the middle of a short batch.
MOMENT = 0.005
# Before the next try when there are no more file descriptors.
RECOVERY = 0.5
ABSENT = -1  # does not accept: not ready yet, stopping, or dead


class Board:
    """How many connections each worker has, int32 in a file that all of them map."""

    def __init__(self, folder: Path, workers: int) -> None:
        path = folder / "connections"
        with path.open("a+b") as file:
            if not file.tell():
                file.write(ABSENT.to_bytes(4, "little", signed=True) * workers)
                file.flush()
            self._map = mmap.mmap(file.fileno(), 4 * workers)
        self._counts = memoryview(self._map).cast("i")

    def tell(self, member: int, count: int) -> None:
        self._counts[member] = count

    def fewest_of_others(self, member: int) -> int | None:
        """The fewest connections that any other worker has who accepts; None when there is none."""
        others = [n for each, n in enumerate(self._counts) if each != member and n != ABSENT]
        return min(others, default=None)


class Acceptor:
    """Accepts from `listener`, from the running loop, until closed.

    `count` says how many connections this worker has, `connect` takes another over.
    """

    def __init__(
        self,
        listener: socket.socket,
        board: Board,
        member: int,
        count: Callable[[], int],
        connect: Callable[[socket.socket], Coroutine[Any, Any, object]],
    ) -> None:
        self._listener = listener
        self._board = board
        self._member = member
        self._count = count
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self.tell()
        self._loop.add_reader(listener, self._ready)

    def tell(self) -> int:
        """How many connections there are, told to the others as well."""
        count = self._count() + len(self._connecting)
        self._board.tell(self._member, count)
        return count

    def close(self) -> None:
        self._board.tell(self._member, ABSENT)
        self._loop.remove_reader(self._listener)
        if self._pause:
            self._pause.cancel()

    def _ready(self) -> None:
        fewest = self._board.fewest_of_others(self._member)
        if fewest is not None and self.tell() > fewest:
            self._wait(MOMENT)
        else:
            self._accept()

    def _wait(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        """Whoever still waits has waited for long enough."""
        self._pause = None
        self._loop.add_reader(self._listener, self._ready)
        self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another was faster, or the client has gone
        except OSError as error:
            log.error("no connection can be accepted (%s); trying again", error)
            self._wait(RECOVERY)
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._connect(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connected)
        self.tell()

    def _connected(self, task: "asyncio.Task[object]") -> None:
        self._connecting.discard(task)
        if not task.cancelled() and (error := task.exception()):  # a client that is no TLS client, mostly
            log.debug("a connection was not made: %s", error)
