"""What is refused at the door, before anything was paid for: bodies that are too large."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import InvalidRequest, TooLarge


class BodyLimit:
    """Middleware: refuses by Content-Length at once, and counts what arrives for bodies that declare none."""

    def __init__(self, app: ASGIApp, *, max_body: int) -> None:
        self.app = app
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "0")
        # uvicorn refuses what is no number; other servers may not, and int() refuses the longest ones.
        if not declared.isdecimal() or len(declared) > 18:
            raise InvalidRequest("Content-Length is no number of bytes; send the size of the body.")
        self._check(int(declared))
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            self._check(received)
            return message

        await self.app(scope, counted, send)

    def _check(self, size: int) -> None:
        if size > self.max_body:
            raise TooLarge(
                f"The body has more than the {self.max_body:,} bytes allowed; send less at a time, "
                "or raise --max-body on the server."
            )
