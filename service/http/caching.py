"""Answers that a client may keep: ETag, If-None-Match, and for how long."""

import hashlib
from importlib.metadata import version

from fastapi import Request
from fastapi.responses import Response

from service.core.models import Model

FOR_EVER = "max-age=31536000, immutable"
ASK_AGAIN = "no-cache"  # kept, and asked for each time whether it is still the same


def etag(model: Model, media_type: str, *options: object) -> str:
    """The tag of what this model answers to these options.

    Weak, because other machines round another way: what two of them answer is the same image, perhaps not to
    the last grey level. The decoder's digest is in it, so that no other model of the same name has the tag.
    """
    decoder = model.manifest.files["decoder.onnx"].sha256
    content = "\0".join(
        [version("vaeserve"), model.manifest.reference, decoder, media_type, *map(repr, options)]
    )
    return f'W/"{hashlib.sha256(content.encode()).hexdigest()[:32]}"'


def headers(tag: str, *, pinned: bool) -> dict[str, str]:
    """`pinned`: the request names the version. Else a newer version may answer the next one."""
    return {"ETag": tag, "Cache-Control": FOR_EVER if pinned else ASK_AGAIN, "Vary": "Accept"}


def not_modified(request: Request, tag: str, model: Model, *, pinned: bool) -> Response | None:
    """The answer to a client that has what it asks for already; None to any other."""
    known = {each.strip() for each in request.headers.get("if-none-match", "").split(",")}
    # A cache may have made a strong tag of it, or forgotten that it is weak (RFC 9110, 13.1.2).
    if not known & {tag, tag.removeprefix("W/"), "*"}:
        return None
    return Response(
        status_code=304, headers=headers(tag, pinned=pinned) | {"X-Model": model.manifest.reference}
    )


def names_version(request: Request, model: str | None) -> bool:
    """Whether the path or the option `model` says which version shall answer."""
    return "version" in request.path_params or "@" in (model or "")
