"""The explorer: the page at `/` and the files it is made of, all of them in service/explorer.

Every file is a route of its own, so that a wrong path is a 404 like any other.
"""

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import PurePath

from fastapi import FastAPI, Request
from fastapi.responses import Response

PAGE = "index.html"
# Not from `mimetypes`, which depends on the machine: browsers refuse modules that come as text/plain.
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    # Nothing from elsewhere, nothing inline, and no answer of the API can become markup.
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # The browser keeps it and revalidates it each time, so that an upgrade shows at once.
    "Cache-Control": "no-cache",
}


def add_explorer(app: FastAPI) -> None:
    """The page at `/` and its files at `/explorer/…`."""
    for file in files("service").joinpath("explorer").iterdir():
        if (media_type := TYPES.get(PurePath(file.name).suffix)) is not None:
            path = "/" if file.name == PAGE else f"/explorer/{file.name}"
            endpoint = _page(file.read_bytes(), media_type)
            app.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)


def _page(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that answers with the content, or with 304 if the browser has it."""
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = HEADERS | {"ETag": etag}

    async def page(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if etag in (each.strip().removeprefix("W/") for each in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return page
