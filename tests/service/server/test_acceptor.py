"""Workers share connections evenly, and no connection waits for a worker that does not accept."""

import asyncio
import contextlib
import socket
import time

import pytest

from service.server.acceptor import ABSENT, Acceptor, Board
from tests.live import serving


@contextlib.contextmanager
def listening():
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield listener


def connected(listener, number):
    return [socket.create_connection(listener.getsockname()) for _ in range(number)]


class Taker:
    """A worker that keeps every connection it is given."""

    def __init__(self, listener, board, member):
        self.taken = []
        self.acceptor = Acceptor(listener, board, member, lambda: len(self.taken), self.take)

    async def take(self, connection):
        self.taken.append(connection)

    def close(self):
        self.acceptor.close()
        for connection in self.taken:
            connection.close()


async def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not hold"
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("number", [2, 32, 33])
def test_simultaneous_connections_are_shared(tmp_path, number):
    async def scenario():
        with listening() as listener, contextlib.ExitStack() as stack:
            # Two acceptors on one loop: without the board the first one called would take all.
            again = stack.enter_context(listener.dup())
            takers = [Taker(each, Board(tmp_path, 2), n) for n, each in enumerate([listener, again])]
            for connection in connected(listener, number):
                stack.enter_context(connection)
            await until(lambda: sum(len(taker.taken) for taker in takers) == number)
            counts = sorted(len(taker.taken) for taker in takers)
            for taker in takers:
                stack.callback(taker.close)
            return counts

    few, many = asyncio.run(scenario())
    assert many - few <= 1


def test_the_fuller_worker_takes_what_the_other_leaves(tmp_path):
    async def scenario():
        with listening() as listener, contextlib.ExitStack() as stack:
            board = Board(tmp_path, 2)
            board.publish(1, 0)  # has no connections and accepts none
            taker = Taker(listener, board, 0)
            stack.callback(taker.close)
            for connection in connected(listener, 5):
                stack.enter_context(connection)
            await until(lambda: len(taker.taken) == 5)

    asyncio.run(scenario())


def test_a_worker_that_does_not_accept_is_ignored(tmp_path):
    board, other = Board(tmp_path, 3), Board(tmp_path, 3)
    assert board.fewest_of_others(0) is None
    board.publish(0, 7)
    other.publish(2, 4)
    assert board.fewest_of_others(0) == 4
    assert other.fewest_of_others(2) == 7
    other.publish(2, ABSENT)
    assert board.fewest_of_others(0) is None


def test_a_closed_acceptor_accepts_nothing(tmp_path):
    async def scenario():
        with listening() as listener:
            board = Board(tmp_path, 2)
            taker = Taker(listener, board, 0)
            assert board.fewest_of_others(1) == 0
            taker.close()
            assert board.fewest_of_others(1) is None
            with connected(listener, 1)[0]:
                await asyncio.sleep(0.05)
            assert not taker.taken

    asyncio.run(scenario())


def connections_per_worker(url, number):
    """The connections of each worker out of `number`; each worker has its own prefix in X-Request-ID."""
    host, port = url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            for _ in range(number)
        ]
        workers = []
        for connection in connections:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = connection.recv(1 << 16).decode().lower()
            identity = answer.split("x-request-id: ")[1].split("\r\n")[0]
            workers.append(identity[:12])  # the prefix; the other digits count
    return sorted(workers.count(worker) for worker in set(workers))


def test_two_workers_get_the_same_number_of_connections(repository):
    with serving(repository, "--workers", "2") as url:
        deadline = time.monotonic() + 30
        while (found := connections_per_worker(url, 16)) != [8, 8]:  # the second worker may still be loading
            assert time.monotonic() < deadline, found
            time.sleep(0.3)
