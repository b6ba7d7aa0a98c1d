"""Reads multipart/form-data in memory: what `curl -F images=@a.png -F images=@b.png -F seed=7` sends.

Starlette's own reader puts large files into temporary ones; images must not touch the disk.
"""

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.core.problems import InvalidRequest, TooLarge

FILES = "images"  # the field of image files
FIELDS = 32  # more than there are options, so that a wrong one is named rather than counted


@dataclass(frozen=True)
class Form:
    """The image files in their order, and the values of every other field."""

    files: list[bytes] = field(default_factory=list)
    fields: dict[str, list[str]] = field(default_factory=dict)


def read_form(data: bytes, content_type: str, *, max_files: int) -> Form:
    """The fields of a body; whether a part calls itself a file makes no difference, its name does."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidRequest(
            "The Content-Type names no boundary; leave the header to the HTTP library, as `curl -F` does."
        )
    parts = _Parts(max_files + FIELDS)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_header_field": parts.header_name,
                "on_header_value": parts.header_value,
                "on_header_end": parts.header_end,
                "on_headers_finished": parts.headers_end,
                "on_part_data": parts.data,
                "on_part_end": parts.end,
                "on_end": parts.close,
            },
        )
        parser.write(data)
    except FormParserError as error:
        raise InvalidRequest(f"The body is not multipart/form-data ({error}); send it again.") from None
    if not parts.closed:
        raise InvalidRequest("The body ends before its closing boundary; send it again.")
    return parts.form


class _Parts:
    """What the parser calls back, in this order for each part; `data[start:end]` is always a piece."""

    def __init__(self, most: int) -> None:
        self.form = Form()
        self.closed = False
        self._left = most
        self._header, self._value = bytearray(), bytearray()
        self._name: str | None = None
        self._pieces: list[memoryview] = []

    def begin(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooLarge("The form has more parts than one request may have images; send several.")
        self._name, self._pieces = None, []

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            name = parse_options_header(self._value.decode("latin-1"))[1].get(b"name")
            self._name = name.decode(errors="replace") if name is not None else None
        self._header, self._value = bytearray(), bytearray()

    def headers_end(self) -> None:
        if self._name is None:
            raise FormParserError("a part has no Content-Disposition with a name")

    def data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(memoryview(data)[start:end])

    def end(self) -> None:
        content = b"".join(self._pieces)
        if self._name == FILES:
            self.form.files.append(content)
        else:
            self.form.fields.setdefault(self._name or "", []).append(content.decode(errors="replace"))

    def close(self) -> None:
        self.closed = True
