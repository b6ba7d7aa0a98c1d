import contextlib

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.problems import InvalidRequest, Problem, TooLarge
from service.http.forms import FIELDS, read_form

TYPE = "multipart/form-data; boundary=B"


def form(*parts, end=b"--B--\r\n"):
    """A body of (name, content) parts, as any HTTP library writes it."""
    head = b'--B\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    return b"".join(head % part for part in parts) + end


def test_files_keep_their_order_and_fields_all_their_values():
    body = form(
        (b"images", b"one"), (b"seed", b"7"), (b"images", b"\r\n--two"), (b"return", b"a"), (b"return", b"b")
    )
    found = read_form(body, TYPE, max_files=8)
    assert found.files == [b"one", b"\r\n--two"]
    assert found.fields == {"seed": ["7"], "return": ["a", "b"]}


def test_what_an_http_library_writes_is_read():
    files = [("images", ("a b\"'é.png", bytes(range(256)), "image/png")), ("images", ("", b"", None))]
    request = httpx.Request("POST", "http://test", files=files, data={"model": "mé@1"})
    found = read_form(request.read(), request.headers["content-type"], max_files=8)
    assert found.files == [bytes(range(256)), b""]
    assert found.fields == {"model": ["mé@1"]}


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        (form((b"images", b"x")), "multipart/form-data", "names no boundary"),
        (form((b"images", b"x")), "multipart/form-data; boundary=" + "B" * 300, "not multipart/form-data"),
        (b"", TYPE, "ends before its closing boundary"),
        (form((b"images", b"x"), end=b""), TYPE, "ends before its closing boundary"),
        (form((b"images", b"x"))[:30], TYPE, "ends before its closing boundary"),
        (b"hello", TYPE, "not multipart/form-data"),
        (b"--B\r\nContent-Type: image/png\r\n\r\nx\r\n--B--", TYPE, "no Content-Disposition with a name"),
        (b"--B\r\n" + b"X: y\r\n" * 100 + b"\r\nx\r\n--B--", TYPE, "not multipart/form-data"),
        (b"--B\r\nX: " + b"y" * 100_000 + b"\r\n\r\nx\r\n--B--", TYPE, "not multipart/form-data"),
    ],
)
def test_a_body_that_is_not_a_form_gets_a_clear_error(body, content_type, said):
    with pytest.raises(InvalidRequest, match=said):
        read_form(body, content_type, max_files=8)


def test_a_form_of_a_million_parts_is_not_read_to_its_end():
    with pytest.raises(TooLarge, match="send several"):
        read_form(form(*[(b"images", b"")] * (8 + FIELDS + 1)), TYPE, max_files=8)


# A header is Latin-1 on the wire.
@given(st.binary(max_size=300), st.text(st.characters(max_codepoint=255), max_size=60))
def test_any_bytes_are_read_or_refused(body, header):
    for content_type in (TYPE, f"multipart/form-data; boundary={header}"):
        for data in (body, b"--B\r\n" + body, form((b"images", body)), form((b"images", b"x")) + body):
            with contextlib.suppress(Problem):
                read_form(data, content_type, max_files=8)


@given(st.lists(st.binary(max_size=200).filter(lambda content: b"--B" not in content), max_size=8))
def test_what_was_sent_is_what_arrives(contents):
    assert read_form(form(*[(b"images", each) for each in contents]), TYPE, max_files=8).files == contents
