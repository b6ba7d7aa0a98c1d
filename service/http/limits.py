"""Applies admission control to every request: the limit on the body, the queue's limits, the deadlines."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core.admission import Admission, Ticket
from service.core.problems import InvalidRequest
from service.http.headers import header


class AdmissionMiddleware:
    """Refuses requests that are too large or too many, and cancels those whose time is up or client gone."""

    def __init__(self, app: ASGIApp, *, admission: Admission) -> None:
        self.app = app
        self.admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = header(scope, b"content-length") or "0"
        # uvicorn refuses anything but digits; other servers may not, and int() refuses very long numbers.
        if not declared.isdecimal() or len(declared) > 18:
            raise InvalidRequest("Content-Length is not a number of bytes; send the size of the body.")
        size = int(declared)
        self.admission.check_size(size)

        async def sender(message: Message) -> None:
            if message["type"] == "http.response.start":
                if any(name == b"content-length" for name, _ in message.get("headers", ())):
                    ticket.answered()
            elif not message.get("more_body"):
                ticket.answered()
            await send(message)

        with Ticket(self.admission, receive, size) as ticket:
            await self.app(scope, ticket.receive, sender)
