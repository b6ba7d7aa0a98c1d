"""The door: what is refused before it costs anything, and how long a request that got in may take.

A request is admitted once. It is refused with 429 when as much is pending as may be: before its body is
read, or as soon as it is known of how many rows it is. After that it is finished, whatever comes. One that
finds nothing pending always gets in.

What is pending is counted in rows, from the body's last byte to the answer, and in bytes of bodies that have
arrived. `Door` is the middleware; `admit` is called by whatever hands rows to a model. One timer looks at the
deadlines of all requests: a timer for each would take longer than all else that is done here.
"""

import asyncio
from collections import Counter
from contextvars import ContextVar
from math import ceil, exp, inf
from time import monotonic

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core.problems import InvalidRequest, Overloaded, Problem, SlowRequest, Timeout, TooLarge
from service.http.headers import header

# A slower upload than this, in bytes a second, is taken for one that only holds a connection.
SLOWEST = 16 << 10
# How often the deadlines are looked at, in seconds.
SWEEP = 0.05
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
        self._open: set[_Ticket] = set()
        self._sweeping = False
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

    def open(self, ticket: "_Ticket") -> None:
        """Look after the deadlines of this request until it is closed."""
        self._open.add(ticket)
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(SWEEP, self._sweep)

    def close(self, ticket: "_Ticket") -> None:
        self._open.discard(ticket)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for ticket in list(self._open):
            ticket.look(now)
        self._sweeping = bool(self._open)
        if self._sweeping:
            loop.call_later(SWEEP, self._sweep)

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

    __slots__ = (
        "_admission",
        "_admitted",
        "_begun",
        "_bytes",
        "_check_size",
        "_client",
        "_declared",
        "_due",
        "_late",
        "_loop",
        "_patient_until",
        "_reading",
        "_received",
        "_rows",
        "_seconds",
        "_started",
        "_task",
        "_watch",
        "ended",
    )

    def __init__(self, door: "Door", client: Receive, declared: int) -> None:
        self.ended: Problem | ClientDisconnect | None = None  # why the request was cancelled
        self._admission = door.admission
        self._check_size = door.check_size
        self._seconds = door.timeout  # for the answer
        self._client = client
        self._declared = declared  # bytes of the body
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._started = self._loop.time() + door.read_timeout
        self._due = inf
        self._late = False  # the client, the last time that was looked
        self._patient_until = inf  # then it is asked whether the client is still there
        self._received = 0
        self._reading = False  # its body is arriving
        self._begun = False
        self._admitted = False
        self._rows = 0
        self._bytes = 0
        self._watch: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        """The client's next message, counted; what does not come in time ends the request."""
        if not self._reading and not self._received:  # the first call
            self._admission.check_rows()
            self._admission.check_bytes(0, self._declared)
            self._reading = True
        if not self._begun:
            self._late = False
            self._due = self._started + self._received / SLOWEST
        try:
            message = await self._client()
        finally:
            if not self._begun:
                self._due = inf
        if message["type"] == "http.request":
            more = len(message.get("body", b""))
            self._received += more
            self._check_size(self._received)
            self._admission.check_bytes(self._bytes, more)
            self._bytes += more
            self._admission.bytes += more
            if self._reading and not message.get("more_body"):
                self._begin()
        return message

    def admit(self, rows: int) -> None:
        if not self._admitted:
            self._admission.check_rows(self._rows)
            self._admitted = True
        if not self._reading:
            self._begin()
        self._hold(rows)

    def answered(self) -> None:
        """There is an answer; how fast it can be sent is no affair of ours."""
        self._release(done=True if self._admitted else None)
        self._due = self._patient_until = inf
        self._stop_watching()

    def close(self) -> None:
        self._release(done=None)
        self._admission.bytes -= self._bytes
        self._bytes = 0
        self._admission.close(self)
        self._stop_watching()

    def look(self, now: float) -> None:
        """End the request if it is time; called every now and then."""
        if now >= self._due and not self.ended:
            if self._begun:
                self._release(done=False)
                self._admission.refused["timeout"] += 1
                self._end(
                    Timeout(
                        f"There was no answer within the {self._seconds:g} s of this server; ask for less at "
                        "a time, or try again later."
                    )
                )
            elif self._late:
                self._admission.refused["slow"] += 1
                self._end(
                    SlowRequest(
                        f"The body did not come in time; send it faster than {SLOWEST:,} bytes a second, and "
                        "with the Content-Length that it has.",
                        headers={"Connection": "close"},  # what is left of the body is not waited for
                    )
                )
            # Where this process did not get to run for a while, what has come meanwhile is in time.
            self._late = True
        elif now >= self._patient_until:
            self._patient_until = inf
            self._watch = self._loop.create_task(self._until_gone())

    def _begin(self) -> None:
        """The whole request is here: from now on it is pending, and the deadline is ours."""
        if not self._begun:
            self._begun = True
            self._reading = False
            now = self._loop.time()
            self._due, self._patient_until = now + self._seconds, now + PATIENCE
            self._hold(1)

    def _release(self, *, done: bool | None) -> None:
        """The rows are no longer pending; whether they are done, or None when that tells nothing."""
        if self._rows:
            self._admission.remove(self._rows, done=None if done is None else self._rows * done)
            self._rows = 0

    def _hold(self, rows: int) -> None:
        """As many rows as this request has at a time; one, while it is not known."""
        if rows > self._rows:
            self._admission.add(rows - self._rows)
            self._rows = rows

    def _end(self, why: Problem | ClientDisconnect) -> None:
        """Whatever is being done for the request stops, and `Door` raises `why`."""
        if self._task and not self.ended:
            self.ended = why
            self._task.cancel()

    async def _until_gone(self) -> None:
        while (await self._client())["type"] != "http.disconnect":
            pass
        self._end(ClientDisconnect())

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
        declared = header(scope, b"content-length") or "0"
        # uvicorn refuses what is no number; other servers may not, and int() refuses the longest ones.
        if not declared.isdecimal() or len(declared) > 18:
            raise InvalidRequest("Content-Length is no number of bytes; send the size of the body.")
        size = int(declared)
        self.check_size(size)
        ticket = _Ticket(self, receive, size)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                if _has_length(message):
                    ticket.answered()
            elif not message.get("more_body"):
                ticket.answered()
            await send(message)

        token = _ticket.set(ticket)
        self.admission.open(ticket)
        try:
            await self.app(scope, ticket.receive, sending)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not ticket.ended or (task and task.uncancel()):  # somebody else wants it to end as well
                raise
            raise ticket.ended from None
        finally:
            _ticket.reset(token)
            ticket.close()

    def check_size(self, size: int) -> None:
        if size > self.max_body:
            raise TooLarge(
                f"The body has more than the {self.max_body:,} bytes allowed; send less at a time, "
                "or raise --max-body on the server."
            )


def _has_length(message: Message) -> bool:
    return any(name == b"content-length" for name, _ in message.get("headers", ()))
