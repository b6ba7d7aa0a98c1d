"""The door: what is refused before it costs anything, and how long a request that got in may take.

A request is admitted once. It is refused with 429 when as much is pending as may be: before its body is
read, or as soon as it is known of how many rows it is. After that it is finished, whatever comes. One that
finds nothing pending always gets in.

What is pending is counted in rows, from the body's last byte to the answer, and in bytes of bodies that have
arrived. `Door` is the middleware; `admit` is called by whatever hands rows to a model.
"""

import asyncio
from collections import Counter
from contextvars import ContextVar
from math import ceil, exp, inf
from time import monotonic

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import InvalidRequest, Overloaded, Problem, SlowRequest, Timeout, TooLarge

# A slower upload than this, in bytes a second, is taken for one that only holds a connection.
SLOWEST = 16 << 10
GRACE = 0.1  # seconds
# Whether the client is still there is asked of requests that take longer than this, in seconds.
PATIENCE = 0.05
# The drain rate is of about this many seconds of work, and is believed after half as many.
HORIZON = 10.0
# A client that is told to wait for longer may as well not come again.
LONGEST_RETRY = 60


class Admission:
    """What one process has taken on, and how fast it gets done. Belongs to the event loop.

    `rows` and `bytes` are pending now; `refused` counts requests by the limit that turned them away.
    """

    def __init__(self, *, max_rows: int, max_bytes: int, timeout: float = inf) -> None:
        self.rows = 0
        self.bytes = 0
        self.refused: Counter[str] = Counter()
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._since = 0.0  # when something was done last, or when work began again
        self._done = 0.0  # rows, of about the last HORIZON seconds in which there was work
        self._busy = 0.0  # those seconds

    @property
    def rate(self) -> float | None:
        """Rows that are done in a second while there is work; None until enough of them were measured."""
        return self._done / self._busy if self._busy >= HORIZON / 2 else None

    @property
    def max_rows(self) -> float:
        """Rows that may be pending: as many as configured, fewer where they would not be done in time."""
        rate = self.rate
        return self._max_rows if rate is None else min(self._max_rows, rate * self._timeout / 2)

    def check_rows(self, held: int = 0) -> None:
        """Overloaded when too many rows are pending, besides those that the request itself holds."""
        if (others := self.rows - held) and others >= self.max_rows:
            raise self._overloaded("rows", f"{others:,} images or latents are waiting")

    def check_bytes(self, held: int, more: int) -> None:
        """Overloaded when `more` bytes would be too many, unless there are none but the request's own."""
        if (others := self.bytes - held) and self.bytes + more > self._max_bytes:
            raise self._overloaded("bytes", f"{others:,} bytes of other requests are waiting")

    def add(self, rows: int) -> None:
        """Count rows that are pending from now on."""
        if not self.rows:
            self._since = monotonic()
        self.rows += rows

    def remove(self, rows: int, *, done: int | None) -> None:
        """Count rows that are no longer pending: `done` of them are, or None where that tells nothing."""
        now = monotonic()
        elapsed, self._since = now - self._since, now
        self.rows -= rows
        if done is not None:
            fade = exp(-elapsed / HORIZON)
            self._done = self._done * fade + done
            self._busy = self._busy * fade + elapsed

    def _overloaded(self, what: str, reason: str) -> Overloaded:
        self.refused[what] += 1
        seconds = min(LONGEST_RETRY, max(1, ceil(self.rows / rate))) if (rate := self.rate) else 1
        return Overloaded(
            f"{reason[:1].upper()}{reason[1:]}, as many as may; try again in {seconds} s.",
            headers={"Retry-After": str(seconds)},
        )


_ticket: ContextVar["_Ticket | None"] = ContextVar("ticket", default=None)


def admit(rows: int) -> None:
    """Count the rows of the current request, as soon as they are known; Overloaded when there is no room.

    Only the first call can refuse: what has begun is finished. Outside of a request it does nothing.
    """
    if ticket := _ticket.get():
        ticket.admit(rows)


class _Ticket:
    """What one request holds, and its deadline: first the client's to send it, then ours to answer."""

    def __init__(self, admission: Admission, receive: Receive, deadline: asyncio.Timeout, seconds: float):
        self.reading = False  # its body is arriving
        self.gone = False  # the client is
        self._admission = admission
        self._receive = receive
        self._deadline = deadline
        self._seconds = seconds  # for the answer
        self._begun = False
        self._admitted = False
        self._rows = 0
        self._bytes = 0
        self._watch: asyncio.TimerHandle | asyncio.Task[None] | None = None

    def read(self, size: int) -> None:
        """Count bytes of the body that have arrived."""
        self._admission.check_bytes(self._bytes, size)
        self._bytes += size
        self._admission.bytes += size

    def begin(self) -> None:
        """The whole request is here: from now on it is pending, and the deadline is ours."""
        if not self._begun:
            self._begun = True
            self.reading = False
            loop = asyncio.get_running_loop()
            self._deadline.reschedule(loop.time() + self._seconds)
            self._watch = loop.call_later(PATIENCE, self._watch_client)
            self._hold(1)

    def admit(self, rows: int) -> None:
        if not self._admitted:
            self._admission.check_rows(self._rows)
            self._admitted = True
        if not self.reading:
            self.begin()
        self._hold(rows)

    def release(self, *, done: bool | None) -> None:
        """The rows are no longer pending; whether they are done, or None when that tells nothing."""
        if self._rows:
            self._admission.remove(self._rows, done=None if done is None else self._rows * done)
            self._rows = 0

    def answered(self) -> None:
        """There is an answer; how fast it can be sent is no affair of ours."""
        self.release(done=True if self._admitted else None)
        if not self._deadline.expired():
            self._deadline.reschedule(None)
        self._stop_watching()

    def close(self) -> None:
        self.release(done=None)
        self._admission.bytes -= self._bytes
        self._bytes = 0
        self._stop_watching()

    def _hold(self, rows: int) -> None:
        """As many rows as this request has at a time; one, while it is not known."""
        if rows > self._rows:
            self._admission.add(rows - self._rows)
            self._rows = rows

    def _watch_client(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if not self._deadline.expired():
            self._deadline.reschedule(0)  # long past: whatever is being done for it ends here

    def _stop_watching(self) -> None:
        if self._watch:
            self._watch.cancel()
            self._watch = None


class Door:
    """Middleware: admission, the limit on the body, and the deadlines.

    `max_body` in bytes; `read_timeout` and `timeout` in seconds, for the client to send the request and
    for the service to answer it; a request that takes longer, or whose client went away, is cancelled.
    """

    def __init__(
        self, app: ASGIApp, *, admission: Admission, max_body: int, read_timeout: float, timeout: float
    ) -> None:
        self.app = app
        self.admission = admission
        self.max_body = max_body
        self.read_timeout = read_timeout
        self.timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        # uvicorn refuses what is no number; other servers may not, and int() refuses the longest ones.
        if not declared.isdecimal() or len(declared) > 18:
            raise InvalidRequest("Content-Length is no number of bytes; send the size of the body.")
        size = int(declared)
        self._check_size(size)
        loop = asyncio.get_running_loop()
        started, received = loop.time(), 0
        deadline = asyncio.timeout(None)
        ticket = _Ticket(self.admission, receive, deadline, self.timeout)

        async def reading() -> Message:
            nonlocal received
            if not ticket.reading and not received:  # the first call
                self.admission.check_rows()
                self.admission.check_bytes(0, size)
                ticket.reading = True
            message = await self._received(receive, started + self.read_timeout + received / SLOWEST)
            if message["type"] == "http.request":
                more = len(message.get("body", b""))
                received += more
                self._check_size(received)
                ticket.read(more)
                if ticket.reading and not message.get("more_body"):
                    ticket.begin()
            return message

        async def sending(message: Message) -> None:
            whole = message["type"] == "http.response.body" and not message.get("more_body")
            if whole or (message["type"] == "http.response.start" and _has_length(message)):
                ticket.answered()
            await send(message)

        token = _ticket.set(ticket)
        try:
            async with deadline:
                await self.app(scope, reading, sending)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise self._too_late(ticket) from None
        finally:
            _ticket.reset(token)
            ticket.close()

    async def _received(self, receive: Receive, until: float) -> Message:
        """The next message, SlowRequest when it does not come in time."""
        try:
            async with asyncio.timeout_at(until):
                return await receive()
        except TimeoutError:
            pass
        try:
            # Where this process did not get to run for a while, what has come meanwhile is in time.
            async with asyncio.timeout(GRACE):
                return await receive()
        except TimeoutError:
            self.admission.refused["slow"] += 1
            raise SlowRequest(
                f"The body did not come in time; send it faster than {SLOWEST:,} bytes a second, and with "
                "the Content-Length that it has.",
                headers={"Connection": "close"},  # what is left of the body is not waited for
            ) from None

    def _too_late(self, ticket: _Ticket) -> Problem | ClientDisconnect:
        if ticket.gone:
            return ClientDisconnect()
        ticket.release(done=False)
        self.admission.refused["timeout"] += 1
        return Timeout(
            f"There was no answer within the {self.timeout:g} s of this server; ask for less at a time, "
            "or try again later."
        )

    def _check_size(self, size: int) -> None:
        if size > self.max_body:
            raise TooLarge(
                f"The body has more than the {self.max_body:,} bytes allowed; send less at a time, "
                "or raise --max-body on the server."
            )


def _has_length(message: Message) -> bool:
    return any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
