"""Runs the application on uvicorn, and stops it without losing a request."""

import asyncio
import gc
import logging
import logging.config
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from time import monotonic
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE

from service.app import create_app
from service.core.problems import NotReady
from service.core.service import Service
from service.server.acceptor import Acceptor, Board
from service.server.banner import banner
from service.server.logs import log_config
from service.server.protocol import Http
from service.server.watchdog import STUCK, watching
from service.settings import GRACE, Settings

# Load balancers keep idle connections for 60 s. They must close first, or a request gets lost.
KEEP_ALIVE = 75

log = logging.getLogger(__name__)

Connect = Callable[[socket.socket], Coroutine[Any, Any, None]]


class Server(uvicorn.Server):
    """Serves `app` until a signal.

    SIGTERM drains: /readyz answers 503, so that balancers stop sending; for `drain_seconds` new requests are
    still answered, with `Connection: close`; then the server stops accepting and finishes the requests in
    flight. SIGINT or a second SIGTERM skips the waiting; a second SIGINT skips the finishing.
    """

    def __init__(self, settings: Settings, app: FastAPI) -> None:
        super().__init__(_config(settings, app))
        self.service: Service = app.state.service
        self._drain_seconds = settings.drain_seconds
        self._drained: float | None = None  # when draining ends, by the monotonic clock
        self._beats = 0  # ticks of the event loop
        self.replaceable = False  # whether a supervisor replaces this process when it ends
        # Makes the acceptor of a worker; None: uvicorn accepts, which is fair only in a single process.
        self.accepting: Callable[[Callable[[], int], Connect], Acceptor] | None = None
        self._acceptor: Acceptor | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([] if self.accepting else sockets)
        if self.accepting and not self.should_exit:
            self._acceptor = self.accepting(lambda: len(self.server_state.connections), self._connect)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._acceptor:
            self._acceptor.close()
        await super().shutdown(sockets)

    async def _connect(self, connection: socket.socket) -> None:
        def protocol() -> asyncio.Protocol:
            return Http(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(protocol, connection, ssl=self.config.ssl)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's handler of SIGTERM and SIGINT."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        elif sig == signal.SIGTERM and self._drained is None:
            self.drain()
        else:
            self.stop()

    def drain(self) -> None:
        self.service.drain()
        # uvicorn adds the second list to every answer, and remakes it from the first once a second.
        for headers in (self.config.encoded_headers, self.server_state.default_headers):
            headers.append((b"connection", b"close"))
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle and not cycle.response_complete:
                connection.shutdown()  # after this answer
        self._drained = monotonic() + self._drain_seconds

    def stop(self) -> None:
        self.should_exit = True

    async def main_loop(self) -> None:
        with watching(lambda: self._beats, self.service.settings.stuck_after):
            await super().main_loop()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        self._beats += 1
        if self._drained is not None and monotonic() >= self._drained:
            self.stop()
        if self._acceptor:
            self._acceptor.publish()
        if self.replaceable and counter % 10 == 0:
            self._give_up_if_stuck()
        return await super().on_tick(counter)

    def _give_up_if_stuck(self) -> None:
        """End the process if a batch hangs, because its thread cannot be stopped."""
        try:
            self.service.check_alive()
        except NotReady as problem:
            log.error("this worker exits so that it is replaced: %s", problem.detail)
            os._exit(STUCK)


def serve_alone(settings: Settings, listener: socket.socket, url: str) -> None:
    """Serve in this process until a signal; SystemExit when no model can be served."""

    def on_loaded(service: Service) -> None:
        if service.failure:
            server.should_exit = True
        else:
            freeze_gc()
            print(banner(settings, service.models, url), flush=True)

    server = Server(settings, create_app(settings, on_loaded=on_loaded))
    server.run(sockets=[listener])
    if server.service.failure:
        sys.exit(f"vae-serve: {server.service.failure}")


def serve_as_worker(
    settings: Settings,
    listener: socket.socket,
    url: str,
    board: Board,
    member: int,
    started: Callable[[Callable[[], None]], None],
    report: Callable[[bool, str], None],
) -> None:
    """Serve as one of several workers until a signal.

    `started` receives a function that stops this worker. `report` is called once: with True and the banner
    when the worker serves, or with False and the reason why it cannot. `board[member]` holds the number of
    this worker's connections.
    """
    logging.config.dictConfig(log_config(settings.log_level, settings.log_format))

    def on_loaded(service: Service) -> None:
        if service.failure:
            report(False, service.failure)
            os._exit(STARTUP_FAILURE)  # an orderly shutdown would first accept requests
        else:
            freeze_gc()
            report(True, banner(settings, service.models, url))

    server = Server(settings, create_app(settings, on_loaded=on_loaded, load_first=True))
    server.replaceable = True
    server.accepting = partial(Acceptor, listener, board, member)
    started(server.stop)
    server.run(sockets=[listener])


def freeze_gc() -> None:
    """Exempt everything imported and loaded so far from garbage collection, and collect less often.

    Reference counting frees nearly all that a request allocates.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _config(settings: Settings, app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="auto",  # uvloop, where it is installed
        http=Http,
        ws="none",
        lifespan="on",
        log_config=log_config(settings.log_level, settings.log_format),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        proxy_headers=False,  # nothing here uses the client's address
        access_log=False,  # the service's own has the request id and the time
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )
