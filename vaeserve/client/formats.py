"""The image formats that the service reads: by their first bytes, and by the suffixes of their files.

The client may not import the service's table; a test holds the two equal.
"""

from typing import NamedTuple


class Format(NamedTuple):
    """An image format."""

    magic: bytes
    media_type: str
    suffixes: tuple[str, ...]


FORMATS = (
    Format(b"\x89PNG", "image/png", (".png",)),
    Format(b"\xff\xd8", "image/jpeg", (".jpg", ".jpeg", ".jpe", ".jfif")),
    Format(b"RIFF", "image/webp", (".webp",)),
    Format(b"GIF8", "image/gif", (".gif",)),
    Format(b"BM", "image/bmp", (".bmp",)),
)
SUFFIXES = frozenset(suffix for each in FORMATS for suffix in each.suffixes)
