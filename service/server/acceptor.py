"""Accepts connections from a listener that several workers share, so that each worker gets as many.

Without it, the worker that wakes first takes every connection in the backlog: of 32 simultaneous connections,
one of two workers often got nearly all, and the other's CPU stayed idle for as long as they stayed open. The
workers therefore publish how many connections they have. A worker with more than another waits a moment
before it accepts.
"""

import asyncio
import logging
import mmap
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

# Seconds that a worker with more connections waits: the other may be in the middle of a short batch.
MOMENT = 0.005
# Seconds before the next attempt when the process has no file descriptors left.
RECOVERY = 0.5
ABSENT = -1  # the worker does not accept: it is loading, stopping, or dead


class Board:
    """The number of connections of each worker, int32 in a file that all of them map."""

    def __init__(self, folder: Path, workers: int) -> None:
        path = folder / "connections"
        with path.open("a+b") as file:
            if not file.tell():
                file.write(ABSENT.to_bytes(4, "little", signed=True) * workers)
                file.flush()
            self._map = mmap.mmap(file.fileno(), 4 * workers)
        self._counts = memoryview(self._map).cast("i")

    def publish(self, member: int, count: int) -> None:
        self._counts[member] = count

    def fewest_of_others(self, member: int) -> int | None:
        """The fewest connections of any other worker that accepts; None if no other worker accepts."""
        others = [n for each, n in enumerate(self._counts) if each != member and n != ABSENT]
        return min(others, default=None)


class Acceptor:
    """Accepts from `listener` on the running loop until closed.

    `count` returns how many connections this worker has; `connect` takes over a new one.
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
        self.publish()
        self._loop.add_reader(listener, self._ready)

    def publish(self) -> int:
        """Publish the number of this worker's connections, and return it."""
        count = self._count() + len(self._connecting)
        self._board.publish(self._member, count)
        return count

    def close(self) -> None:
        self._board.publish(self._member, ABSENT)
        self._loop.remove_reader(self._listener)
        if self._pause:
            self._pause.cancel()

    def _ready(self) -> None:
        fewest = self._board.fewest_of_others(self._member)
        if fewest is not None and self.publish() > fewest:
            self._wait(MOMENT)
        else:
            self._accept()

    def _wait(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        """Accept what the other workers have left in the backlog."""
        self._pause = None
        self._loop.add_reader(self._listener, self._ready)
        self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the client has gone
        except OSError as error:
            log.error("cannot accept a connection (%s); trying again", error)
            self._wait(RECOVERY)
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._connect(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connected)
        self.publish()

    def _connected(self, task: "asyncio.Task[object]") -> None:
        self._connecting.discard(task)
        if not task.cancelled() and (error := task.exception()):  # usually a client that does not speak TLS
            log.debug("the connection failed: %s", error)
