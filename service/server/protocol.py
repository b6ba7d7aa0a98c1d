"""uvicorn's HTTP/1.1 protocol, with limits on request heads and problem documents for broken requests.

Bytes that are not HTTP, heads that are too long and heads that are never finished do not reach the
application. uvicorn would answer the first in text/plain and wait for the others without a limit.

When a request is refused before its body has arrived, the service sends the answer, closes its half of the
connection, and still reads for a short while (RFC 9112, 9.6). Closing a socket with unread bytes would reset
the connection: the client's send would fail, and the client might lose the answer.
"""

import asyncio
import secrets
from collections.abc import Callable
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.core.problems import MEDIA_TYPE, InvalidRequest, Problem, SlowRequest, content

MAX_HEAD = 64 << 10  # bytes of the request line and headers; proxies allow fewer
HEAD_SECONDS = 5.0  # from the first byte of the head to the last
# How much is read of a body after its request was refused, and for how long.
LINGER_BYTES, LINGER_SECONDS = 4 << 20, 2.0


class _Transport:
    """The transport of a connection as uvicorn sees it, with its own `close`."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, real: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = real.write
        self.is_closing = real.is_closing
        self.close = close


class Http(HttpToolsProtocol):
    """HTTP/1.1 with the httptools parser, which is written in C and ten times as fast as h11."""

    _head = 0  # bytes received of an unfinished head
    _in_head = False
    _timer: asyncio.TimerHandle | None = None
    _lingering = -1  # bytes of the body that are still read; below 0: the request was not refused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._real = transport
        self.transport = _Transport(transport, self._close)  # type: ignore[assignment]
        # uvicorn closes connections that are idle after a request, but not before the first one.
        self._close_after(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering >= 0:
            return self._throw_away(data)
        super().data_received(data)
        if self._in_head:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head = True, 0
        self._close_after(HEAD_SECONDS)

    def on_headers_complete(self) -> None:
        if self._head_size() > MAX_HEAD:
            raise ValueError("the head is too long")  # stops the parser, which then calls send_400_response
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP with status 400. Status 422 is for requests with invalid content."""
        if self._in_head and self._head_size() > MAX_HEAD:
            return self._refuse_head()
        self._refuse(
            InvalidRequest(
                "The bytes are not a valid HTTP/1.1 request; check the method, the URL and the headers."
            ),
            HTTPStatus.BAD_REQUEST,
        )

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _refuse_head(self) -> None:
        problem = InvalidRequest(f"The URL and the headers are longer than {MAX_HEAD:,} bytes; shorten them.")
        self._refuse(problem, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _close_after(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self._in_head:
            problem = SlowRequest(f"The headers did not arrive within {HEAD_SECONDS:g} s; send them at once.")
            self._refuse(problem, HTTPStatus.REQUEST_TIMEOUT)
        else:
            self._real.close()

    def _close(self) -> None:
        """Called by uvicorn after the last answer on a connection, and for idle connections."""
        if self.cycle and self.cycle.response_complete and self.cycle.more_body:
            self._linger()
        else:
            self._real.close()

    def _linger(self) -> None:
        if (
            self._real.is_closing() or not self._real.can_write_eof()
        ):  # TLS cannot close one half of a connection
            return self._real.close()
        self._lingering = LINGER_BYTES
        self.transport.is_closing = lambda: True  # type: ignore[method-assign]  # uvicorn is done with it
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected = True  # its answer would come after the end of our half
            self.cycle.message_event.set()
        self._real.write_eof()  # after the answer
        self.flow.resume_reading()
        self._in_head = False
        self._close_after(LINGER_SECONDS)

    def _throw_away(self, data: bytes) -> None:
        self._lingering -= len(data)
        if self._lingering < 0:
            self._lingering = 0
            self._real.close()

    def _refuse(self, problem: Problem, status: HTTPStatus) -> None:
        self._in_head = False
        self._stop_timer()
        if self.transport.is_closing():
            return
        identity = secrets.token_hex(8)
        body = content(problem, identity, status=status)
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"content-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\n"
            f"x-request-id: {identity}\r\n"
            "connection: close\r\n\r\n"
        )
        self._real.write(head.encode() + body)
        self._linger()
