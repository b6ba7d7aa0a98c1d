"""Admission control: which requests are refused before they cost anything, and how long the rest may take.

A request is admitted once. It is refused with 429 if too much is pending before its body is read, or as soon
as its number of rows is known. After that it always finishes. A request that finds nothing pending always
gets in.

Pending work is counted in rows, from the last byte of the body to the answer, and in bytes of bodies that
have arrived. One timer checks the deadlines of all requests: a timer for each would cost more than everything
else here.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from math import ceil, exp, inf
from time import monotonic
from types import TracebackType
from typing import Any

from service.core.problems import Overloaded, Problem, SlowRequest, Timeout, TooLarge

# An upload slower than this, in bytes a second, only holds a connection open.
MIN_UPLOAD_RATE = 16 << 10
# Seconds between two checks of the deadlines.
CHECK_INTERVAL = 0.05
# Seconds after which a request that is still being computed is checked for a client that has disconnected.
DISCONNECT_CHECK = 0.05
# The rate of completion covers about this many seconds of work, and is trusted after half as many.
HORIZON = 10.0
# The longest Retry-After, in seconds.
MAX_RETRY_AFTER = 60

Message = MutableMapping[str, Any]  # of ASGI
Receive = Callable[[], Awaitable[Message]]


class ClientGone(Exception):
    """The client disconnected before its request was answered."""


class Admission:
    """The work that one process has pending, the limits on it, and how fast it completes.

    `max_rows` and `max_bytes` limit what is pending, `max_body` the bytes of one body. The client has
    `read_timeout` seconds to send a request, and more for a large body; the service has `timeout` seconds to
    answer it. `rows` and `bytes` are pending now; `refused` counts requests by the limit that refused them.
    Belongs to the event loop.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        max_bytes: int,
        max_body: int = 1 << 30,
        read_timeout: float = inf,
        timeout: float = inf,
    ) -> None:
        self.rows = 0
        self.bytes = 0
        self.refused: Counter[str] = Counter()
        self.max_body = max_body
        self.read_timeout = read_timeout
        self.timeout = timeout
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._open: set[Ticket] = set()
        self._checking = False
        self._since = 0.0  # the last time that work was completed, or began after a pause
        self._done = 0.0  # rows, over about the last HORIZON seconds in which there was work
        self._busy = 0.0  # those seconds

    @property
    def rate(self) -> float | None:
        """Rows completed in a second of work; None until enough of them were measured."""
        return self._done / self._busy if self._busy >= HORIZON / 2 else None

    @property
    def max_rows(self) -> float:
        """Rows that may be pending: the configured number, or fewer if they would not be done in time."""
        rate = self.rate
        return self._max_rows if rate is None else min(self._max_rows, rate * self.timeout / 2)

    def check_size(self, size: int) -> None:
        """Raises TooLarge if a body has more than `max_body` bytes."""
        if size > self.max_body:
            raise TooLarge(
                f"The body has more than the {self.max_body:,} bytes allowed; send less at a time, "
                "or raise --max-body on the server."
            )

    def check_rows(self, held: int = 0) -> None:
        """Raises Overloaded if too many rows are pending besides the `held` ones of the request itself."""
        if (others := self.rows - held) and others >= self.max_rows:
            raise self._overloaded("rows", f"{others:,} images or latents are waiting")

    def check_bytes(self, held: int, more: int) -> None:
        """Raises Overloaded if `more` bytes are too many, unless only the request itself holds any."""
        if (others := self.bytes - held) and self.bytes + more > self._max_bytes:
            raise self._overloaded("bytes", f"{others:,} bytes of other requests are waiting")

    def add(self, rows: int) -> None:
        """Count rows as pending."""
        if not self.rows:
            self._since = monotonic()
        self.rows += rows

    def remove(self, rows: int, *, done: int | None) -> None:
        """Count rows as no longer pending. `done` of them were computed; None leaves the rate as it is."""
        now = monotonic()
        elapsed, self._since = now - self._since, now
        self.rows -= rows
        if done is not None:
            fade = exp(-elapsed / HORIZON)
            self._done = self._done * fade + done
            self._busy = self._busy * fade + elapsed

    def open(self, ticket: "Ticket") -> None:
        """Watch the deadlines of a request until it is closed."""
        self._open.add(ticket)
        if not self._checking:
            self._checking = True
            asyncio.get_running_loop().call_later(CHECK_INTERVAL, self._check_deadlines)

    def close(self, ticket: "Ticket") -> None:
        """Stop watching a request."""
        self._open.discard(ticket)

    def _check_deadlines(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for ticket in list(self._open):
            ticket.check_deadline(now)
        self._checking = bool(self._open)
        if self._checking:
            loop.call_later(CHECK_INTERVAL, self._check_deadlines)

    def _overloaded(self, limit: str, reason: str) -> Overloaded:
        self.refused[limit] += 1
        seconds = min(MAX_RETRY_AFTER, max(1, ceil(self.rows / rate))) if (rate := self.rate) else 1
        return Overloaded(
            f"The queue is full: {reason}. Try again in {seconds} s.",
            headers={"Retry-After": str(seconds)},
        )


_current: ContextVar["Ticket | None"] = ContextVar("ticket", default=None)


def admit(rows: int) -> None:
    """Count the rows of the current request as soon as they are known; Overloaded if there is no room.

    Only the first call can refuse: a request that has begun is finished. Outside a request this does nothing.
    """
    if ticket := _current.get():
        ticket.admit(rows)


class Ticket:
    """What one request holds, and its deadline: first the client's for sending it, then ours for the answer.

    A context manager around the request. When the deadline passes or the client disconnects, the task is
    cancelled, and `with` raises the reason: a Problem or ClientGone.
    """

    __slots__ = (
        "_admission",
        "_admitted",
        "_begun",
        "_bytes",
        "_client",
        "_declared",
        "_due",
        "_ended",
        "_late",
        "_loop",
        "_reading",
        "_received",
        "_rows",
        "_started",
        "_task",
        "_token",
        "_watch",
        "_watch_from",
    )

    def __init__(self, admission: Admission, client: Receive, declared: int) -> None:
        """`client` receives ASGI messages; `declared` is the Content-Length in bytes."""
        self._admission = admission
        self._client = client
        self._declared = declared
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._started = self._loop.time() + admission.read_timeout
        self._due = inf
        self._late = False  # whether the client was late at the last check
        self._watch_from = inf  # when to start waiting for a disconnect
        self._received = 0
        self._reading = False  # the body is arriving
        self._begun = False
        self._admitted = False
        self._rows = 0
        self._bytes = 0
        self._watch: asyncio.Task[None] | None = None
        self._ended: Problem | ClientGone | None = None  # why the request was cancelled

    def __enter__(self) -> "Ticket":
        self._token = _current.set(self)
        self._admission.open(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        self._release(done=None)
        self._admission.bytes -= self._bytes
        self._bytes = 0
        self._admission.close(self)
        self._stop_watching()
        # Only our own cancellation becomes the reason: the server may cancel the task too.
        if (
            self._ended
            and isinstance(error, asyncio.CancelledError)
            and not (self._task and self._task.uncancel())
        ):
            raise self._ended from None

    async def receive(self) -> Message:
        """The client's next message, counted. A body that does not arrive in time ends the request."""
        if not self._reading and not self._received:  # the first call
            self._admission.check_rows()
            self._admission.check_bytes(0, self._declared)
            self._reading = True
        if not self._begun:
            self._late = False
            self._due = self._started + self._received / MIN_UPLOAD_RATE
        try:
            message = await self._client()
        finally:
            if not self._begun:
                self._due = inf
        if message["type"] == "http.request":
            more = len(message.get("body", b""))
            self._received += more
            self._admission.check_size(self._received)
            self._admission.check_bytes(self._bytes, more)
            self._bytes += more
            self._admission.bytes += more
            if self._reading and not message.get("more_body"):
                self._begin()
        return message

    def admit(self, rows: int) -> None:
        """Count the rows of this request; see the function of this name."""
        if not self._admitted:
            self._admission.check_rows(self._rows)
            self._admitted = True
        if not self._reading:
            self._begin()
        self._hold(rows)

    def answered(self) -> None:
        """There is an answer. How fast the client takes it is not limited here."""
        self._release(done=True if self._admitted else None)
        self._due = self._watch_from = inf
        self._stop_watching()

    def check_deadline(self, now: float) -> None:
        """Ends the request if its time is up. Called every CHECK_INTERVAL."""
        if now >= self._due and not self._ended:
            if self._begun:
                self._release(done=False)
                self._admission.refused["timeout"] += 1
                self._end(
                    Timeout(
                        f"There was no answer within the {self._admission.timeout:g} s that this server "
                        "allows; ask for less at a time, or try again later."
                    )
                )
            elif self._late:
                self._admission.refused["slow"] += 1
                self._end(
                    SlowRequest(
                        "The body did not arrive in time; send it at more than "
                        f"{MIN_UPLOAD_RATE:,} bytes a second, with the right Content-Length.",
                        headers={"Connection": "close"},  # the rest of the body is not read
                    )
                )
            # The second check decides: if this process was suspended, what arrived meanwhile is in time.
            self._late = True
        elif now >= self._watch_from:
            self._watch_from = inf
            self._watch = self._loop.create_task(self._until_gone())

    def _begin(self) -> None:
        """The whole request has arrived: it is pending now, and the deadline is ours."""
        if not self._begun:
            self._begun = True
            self._reading = False
            now = self._loop.time()
            self._due, self._watch_from = now + self._admission.timeout, now + DISCONNECT_CHECK
            self._hold(1)

    def _hold(self, rows: int) -> None:
        """Hold as many rows as the request ever has at a time; one, until the number is known."""
        if rows > self._rows:
            self._admission.add(rows - self._rows)
            self._rows = rows

    def _release(self, *, done: bool | None) -> None:
        """Let go of the rows. `done`: whether they were computed; None leaves the rate as it is."""
        if self._rows:
            self._admission.remove(self._rows, done=None if done is None else self._rows * done)
            self._rows = 0

    def _end(self, reason: Problem | ClientGone) -> None:
        """Cancels the request."""
        if self._task and not self._ended:
            self._ended = reason
            self._task.cancel()

    async def _until_gone(self) -> None:
        while (await self._client())["type"] != "http.disconnect":
            pass
        self._end(ClientGone())

    def _stop_watching(self) -> None:
        if self._watch:
            self._watch.cancel()
            self._watch = None
