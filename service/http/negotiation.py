"""Which media type a body has, and which media type the answer shall have."""

import re
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache

from service.core.problems import NotAcceptable, UnsupportedMediaType
from vaeserve.bundle.images import FORMATS

JSON = "application/json"
NPY = "application/x-npy"
NPZ = "application/x-npz"
PNG = "image/png"
JPEG = "image/jpeg"
WEBP = "image/webp"
GIF = "image/gif"
MULTIPART = "multipart/form-data"
IMAGE_TYPES = tuple(each.media_type for each in FORMATS.values())

ALIASES = {"image/jpg": JPEG, "image/x-ms-bmp": "image/bmp"}  # not registered, and common


def content_type(header: str | None, readers: Collection[str]) -> str:
    """The media type of a body; UnsupportedMediaType if none of `readers` reads it."""
    found = header or ""
    if found not in readers:  # most clients write it as it is written here
        found = found.partition(";")[0].strip().lower()
        found = ALIASES.get(found, found)
    if found not in readers:
        what = f"{found} cannot be read here" if found else "The body has no Content-Type"
        example = PNG if PNG in readers else JSON
        raise UnsupportedMediaType(
            f"{what}; send {', '.join(readers)}. With curl: -H 'Content-Type: {example}'."
        )
    return found


def negotiate(accept: str | None, possible: Iterable[str]) -> str:
    """The media type that the Accept header prefers; the earlier one of `possible` wins a tie."""
    return _best(accept, tuple(possible))


@lru_cache(64)  # clients send few different headers
def _best(accept: str | None, possible: tuple[str, ...]) -> str:
    ranges = list(_ranges(accept)) if accept and accept.strip() else [("*/*", 1.0)]

    def quality(media_type: str) -> float:
        # The most specific range that matches decides, whatever the others say (RFC 9110, 12.5.1).
        for pattern in (media_type, media_type.split("/")[0] + "/*", "*/*"):
            found = [q for name, q in ranges if name == pattern]
            if found:
                return max(found)
        return 0.0

    best = max(possible, key=quality)
    if quality(best) == 0:
        raise NotAcceptable(
            f"Nothing that Accept asks for can be made here; ask for {', '.join(possible)}.",
            headers={"Vary": "Accept"},
        )
    return best


def _ranges(accept: str) -> Iterator[tuple[str, float]]:
    """(media range, q) of each element; malformed elements are left out."""
    for element in accept.lower().split(","):
        name, *parameters = (part.strip() for part in element.split(";"))
        q = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                value = value.strip()
                q = float(value) if re.fullmatch(r"(0(\.\d{0,3})?|1(\.0{0,3})?)", value) else -1.0
        if "/" in name and q >= 0:
            yield name, q
