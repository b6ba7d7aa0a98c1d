"""HTTP on the wire: uvicorn's, and what never becomes a request is refused in our shape of an error too.

Bytes that are no HTTP, heads that are too long, and connections on which a head does not get finished reach
no application: uvicorn itself would answer the first in text/plain, and bear with the others for ever.
"""

import asyncio
import secrets
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.problems import MEDIA_TYPE, InvalidRequest, Problem, SlowRequest, content

MAX_HEAD = 64 << 10  # bytes of a request's line and headers; proxies stop at less
HEAD_SECONDS = 5.0  # from a head's first byte to its last


class Http(HttpToolsProtocol):
    """httptools' parser is C; the other one that uvicorn has takes ten times as long."""

    _head = 0  # bytes that have come of an unfinished head
    _in_head = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn closes connections that are idle after a request, but not those that are so before one.
        self._close_after(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
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
            self.transport.close()

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
        self.transport.write(head.encode() + body)
        self.transport.close()
