"""Lets clients cache answers: ETag, If-None-Match and Cache-Control."""

import hashlib
from importlib.metadata import version

from fastapi import Request
from fastapi.responses import Response

from service.core.models import Model

IMMUTABLE = "max-age=31536000, immutable"
REVALIDATE = "no-cache"  # may be stored, but must be revalidated each time


def etag(model: Model, media_type: str, *options: object) -> str:
    """The tag of this model's answer to these options.

    It is weak because machines round differently: two of them may return images that differ by one grey
    level. It includes the decoder's digest, so that another model of the same name has another tag.
    """
    decoder = model.manifest.files["decoder.onnx"].sha256
    content = "\0".join(
        [version("vaeserve"), model.manifest.reference, decoder, media_type, *map(repr, options)]
    )
    return f'W/"{hashlib.sha256(content.encode()).hexdigest()[:32]}"'


def headers(tag: str, *, pinned: bool) -> dict[str, str]:
    """The headers of a cacheable answer. `pinned`: the request names the version, so it never changes."""
    return {"ETag": tag, "Cache-Control": IMMUTABLE if pinned else REVALIDATE, "Vary": "Accept"}


def not_modified(request: Request, tag: str, model: Model, *, pinned: bool) -> Response | None:
    """304 if the client already has this answer, else None."""
    known = {each.strip() for each in request.headers.get("if-none-match", "").split(",")}
    # A cache may have dropped the mark of a weak tag (RFC 9110, 13.1.2).
    if not known & {tag, tag.removeprefix("W/"), "*"}:
        return None
    return Response(
        status_code=304, headers=headers(tag, pinned=pinned) | {"X-Model": model.manifest.reference}
    )


def names_version(request: Request, model: str | None) -> bool:
    """Whether the path or the option `model` names a version."""
    return "version" in request.path_params or "@" in (model or "")
