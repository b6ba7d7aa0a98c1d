"""Arbitrary bytes, as every media type, on every route: an answer or a problem, never a fault."""

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.problems import Problem
from service.core.service import Budget
from service.http.bodies import READERS
from service.http.negotiation import JSON, MULTIPART
from service.operations.operation import Inputs
from service.settings import Settings
from tests.service.http.test_bodies import COLOUR, GREY
from tests.service.test_app import with_app
from vaeserve.bundle.images import ImageError, TooManyPixels, image_size, read_image

BUDGET = Budget(images=8, pixels=10_000, all_pixels=20_000)
# So that a good part of the bytes gets past the first look at them.
MAGIC = [
    b"",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\4\0\0\0\4\x08\0\0\0\0",
    b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1",
    b"GIF89a\4\0\4\0\x80\0\0",
    b"BM",
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"RIFF\x40\0\0\0WEBPVP8L",
    b"\x93NUMPY\1\0\x46\0{'descr': '|u1', 'fortran_order': False, 'shape': (",
]
anything = st.builds(bytes.__add__, st.sampled_from(MAGIC), st.binary(max_size=300))


@settings(deadline=None, max_examples=200)
@given(anything)
def test_every_reader_reads_or_refuses(data):
    for manifest in (GREY, COLOUR):
        for readers in READERS.values():
            for media_type, reader in readers.items():
                if media_type != JSON:  # takes no bytes: test_parsing.py
                    with contextlib.suppress(Problem, TooManyPixels):
                        reader([data] if media_type == MULTIPART else data, manifest, BUDGET)


@settings(deadline=None, max_examples=200)
@given(anything)
def test_the_runtime_reads_or_says_why_not(data):
    with contextlib.suppress(ImageError):
        read_image(data, height=4, width=5, channels=1, fit="cover", max_pixels=10_000)
    with contextlib.suppress(ImageError):
        image_size(data, max_pixels=10_000)


@pytest.mark.parametrize("route", ["/encode", "/decode", "/reconstruct", "/sample"])
def test_no_body_makes_the_service_fail(route, repository, caplog):
    async def scenario(client):
        bodies = [magic + bytes(range(256)) for magic in MAGIC]
        bodies += [
            b"{" * 5000,
            b'{"images": ["' + b"A" * 5000 + b'"]}',
            b"--B\r\n\r\n--B--",
            b"null",
            b"\xff",
        ]
        types = [*READERS[Inputs.IMAGES], "multipart/form-data; boundary=B", "text/plain", "x", ""]
        for kind in types:
            answers = await asyncio.gather(
                *(client.post(route, content=body, headers={"Content-Type": kind}) for body in bodies)
            )
            for answer in answers:
                assert 400 <= answer.status_code < 500, (kind, answer.text)
                assert answer.headers["content-type"] == "application/problem+json"

    with_app(Settings(models=repository / "tiny/1", access_log=False), scenario)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
