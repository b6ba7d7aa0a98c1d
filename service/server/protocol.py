"""HTTP on the wire: uvicorn's, and what never becomes a request is refused in our shape of an error too.

Bytes that are no HTTP, heads that are too long, and connections on which a head does not get finished reach
no application: uvicorn itself would answer the first in text/plain, and bear with the others for ever.

Who is refused before it has sent everything is still listened to for a little while, with the answer sent and
our half of the connection closed (RFC 9112, 9.6). A socket that is closed with bytes unread is reset instead,
which breaks the client's sending and may take the answer from it before it was read.
"""

import asyncio
import secrets
from collections.abc import Callable
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.core.problems import MEDIA_TYPE, InvalidRequest, Problem, SlowRequest, content

MAX_HEAD = 64 << 10  # bytes of a request's line and headers; proxies stop at less
HEAD_SECONDS = 5.0  # from a head's first byte to its last
# How much, and for how long, is still taken in of a request that is refused before it was all sent.
LINGER_BYTES, LINGER_SECONDS = 4 << 20, 2.0


class _Transport:
    """A connection's transport for uvicorn, with another way to close it."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, real: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = real.write
        self.is_closing = real.is_closing
        self.close = close


class Http(HttpToolsProtocol):
    """httptools' parser is C; the other one that uvicorn has takes ten times as long."""

    _head = 0  # bytes that have come of an unfinished head
    _in_head = False
    _timer: asyncio.TimerHandle | None = None
    _lingering = -1  # bytes that are still taken in; below 0: not refused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._real = transport
        self.transport = _Transport(transport, self._close)  # type: ignore[assignment]
        # uvicorn closes connections that are idle after a request, but not those that are so before one.
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
            raise ValueError("the head is too long")  # the parser stops: on to send_400_response
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Status 400, which stands for the protocol; 422 is for what came over it."""
        if self._in_head and self._head_size() > MAX_HEAD:
            return self._refuse_head()
        self._refuse(
            InvalidRequest(
                "The bytes are no HTTP/1.1 request that can be read; "
                "check the method, the URL and the headers."
            ),
            HTTPStatus.BAD_REQUEST,
        )

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _refuse_head(self) -> None:
        problem = InvalidRequest(f"The URL and the headers have more than {MAX_HEAD:,} bytes; send fewer.")
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
            problem = SlowRequest(f"The headers did not come within {HEAD_SECONDS:g} s; send them at once.")
            self._refuse(problem, HTTPStatus.REQUEST_TIMEOUT)
        else:
            self._real.close()

    def _close(self) -> None:
        """What uvicorn calls after the last answer of a connection, or of one that is idle."""
        if self.cycle and self.cycle.response_complete and self.cycle.more_body:
            self._linger()
        else:
            self._real.close()

    def _linger(self) -> None:
        if self._real.is_closing() or not self._real.can_write_eof():  # TLS has no half of a connection
            return self._real.close()
        self._lingering = LINGER_BYTES
        self.transport.is_closing = lambda: True  # type: ignore[method-assign]  # for uvicorn it is over
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected = True  # its answer would come after the end
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
