import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.problems import NotAcceptable, UnsupportedMediaType
from service.http.negotiation import JPEG, JSON, NPY, PNG, content_type, negotiate

POSSIBLE = [JSON, NPY, PNG, JPEG]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("image/png", PNG),
        ("IMAGE/PNG", PNG),
        ("image/*", PNG),
        ("image/png;q=0.5, image/jpeg", JPEG),
        ("image/png; q=0.5 , application/json; q=0.4", PNG),
        ("*/*;q=0.1, application/x-npy;q=0.2", NPY),
        # The most specific range decides: JSON is refused although */* would take it.
        ("application/json;q=0, */*", NPY),
        ("image/*;q=0.2, image/jpeg;q=0.9, application/json;q=0.5", JPEG),
        ("text/html, application/json;charset=utf-8", JSON),
        # What browsers send for <img>, and for a page.
        ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", PNG),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", JSON),
        # An element that is malformed is as good as absent.
        ("image/png;q=7, application/json;q=0.1", JSON),
        ("image/png;q=nan, application/json;q=0.1", JSON),
    ],
)
def test_accept(accept, expected):
    assert negotiate(accept, POSSIBLE) == expected


@pytest.mark.parametrize("accept", ["text/html", "image/webp", "*/*;q=0", "application/json;q=0", "nonsense"])
def test_unsupported_media_types_list_the_supported_ones(accept):
    with pytest.raises(NotAcceptable) as refused:
        negotiate(accept, POSSIBLE)
    assert all(media_type in refused.value.detail for media_type in POSSIBLE)
    assert refused.value.headers["Vary"] == "Accept"


@given(st.text(max_size=80))
def test_any_accept_header_is_answered_or_refused(accept):
    with contextlib.suppress(NotAcceptable):
        assert negotiate(accept, POSSIBLE) in POSSIBLE


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("image/png", PNG),
        ("Image/PNG; x=1", PNG),
        ("application/json; charset=utf-8", JSON),
        ("image/jpg", JPEG),
    ],
)
def test_content_type(header, expected):
    assert content_type(header, POSSIBLE) == expected


@pytest.mark.parametrize(
    "header", [None, "", "text/plain", "application/x-www-form-urlencoded", "image/tiff"]
)
def test_other_content_types_get_an_error_that_says_what_to_send(header):
    with pytest.raises(UnsupportedMediaType, match="-H 'Content-Type: ") as refused:
        content_type(header, POSSIBLE)
    assert JSON in refused.value.detail


def test_a_route_that_reads_one_type_says_that_one():
    with pytest.raises(UnsupportedMediaType, match="Content-Type: application/json"):
        content_type("text/plain", [JSON])
