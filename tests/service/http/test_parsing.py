"""JSON bodies, and the options of query and body together."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.problems import InvalidRequest, Problem, TooLarge
from service.http.parsing import merge, parse
from service.operations.decode import DECODE
from service.operations.encode import ENCODE, EncodeOptions
from service.operations.reconstruct import RECONSTRUCT
from service.operations.sample import SAMPLE

EncodeBody, DecodeBody, ReconstructBody, SampleBody = (
    operation.body for operation in (ENCODE, DECODE, RECONSTRUCT, SAMPLE)
)


def wrong(kind, body):
    """The (pointer, detail) of everything that is wrong with the body."""
    with pytest.raises(InvalidRequest) as refused:
        parse(kind, body)
    return [(error.pointer, error.detail) for error in refused.value.errors]


@pytest.mark.parametrize(
    ("kind", "body", "pointer", "detail"),
    [
        (EncodeBody, b"", "", "Invalid JSON"),
        (EncodeBody, b"{", "", "Invalid JSON"),
        (EncodeBody, b"\xff\xfe", "", "Invalid JSON"),
        (EncodeBody, b"[]", "", "should be an object"),
        (EncodeBody, b"[" * 100_000, "", "recursion"),
        (EncodeBody, b"{}", "/images", "required"),
        (EncodeBody, b'{"images": []}', "/images", "at least 1"),
        (EncodeBody, b'{"images": "abc"}', "/images", "array"),
        (EncodeBody, b'{"images": [5]}', "/images/0", "in base64, or whole numbers"),
        (EncodeBody, b'{"images": [[1, 2]]}', "/images/0/0", "in base64, or whole numbers"),
        (EncodeBody, b'{"images": ["a", [[0, 256]]]}', "/images/1/0/1", "less than or equal to 255"),
        (EncodeBody, b'{"images": [[[0], [-1]]]}', "/images/0/1/0", "greater than or equal to 0"),
        (EncodeBody, b'{"images": [[[[1, 2, 3], [1, 2, 300]]]]}', "/images/0/0/1/2", "less than or equal"),
        (EncodeBody, b'{"images": [[[0.5]]]}', "/images/0/0/0", "integer"),
        (EncodeBody, b'{"images": [[[true]]]}', "/images/0/0/0", "integer"),
        (EncodeBody, b'{"images": [[["1"]]]}', "/images/0/0/0", "integer"),
        (
            EncodeBody,
            b'{"images": ["a"], "return": ["variance"]}',
            "/return/0",
            "'mean', 'logvar', 'sample', 'kl' or 'active'",
        ),
        (EncodeBody, b'{"images": ["a"], "return": []}', "/return", "at least 1"),
        (EncodeBody, b'{"images": ["a"], "seed": -1}', "/seed", "greater than or equal to 0"),
        (EncodeBody, b'{"images": ["a"], "seed": 9007199254740992}', "/seed", "less than"),
        (EncodeBody, b'{"images": ["a"], "seed": 1.5}', "/seed", "integer"),
        (EncodeBody, b'{"images": ["a"], "temperature": 1}', "/temperature", "not permitted"),
        (EncodeBody, b'{"images": ["a"], "model": 5}', "/model", "string"),
        (DecodeBody, b'{"latents": []}', "/latents", "at least 1"),
        (DecodeBody, b'{"latents": [0.5]}', "/latents/0", "nested lists of finite numbers"),
        (DecodeBody, b'{"latents": [[NaN]]}', "/latents/0/0", "finite"),
        (DecodeBody, b'{"latents": [[0, -Infinity]]}', "/latents/0/1", "finite"),
        (DecodeBody, b'{"latents": [[1e999]]}', "/latents/0/0", "finite"),
        (DecodeBody, b'{"latents": [[0], [null]]}', "/latents/1/0", "number"),
        (DecodeBody, b'{"latents": [["0"]]}', "/latents/0/0", "number"),
        (SampleBody, b'{"n": 0}', "/n", "greater than or equal to 1"),
        (SampleBody, b'{"n": "3"}', "/n", "integer"),
        (SampleBody, b'{"temperature": NaN}', "/temperature", "finite"),
        (SampleBody, b'{"temperature": 11}', "/temperature", "less than or equal to 10"),
    ],
)
def test_what_is_wrong_is_pointed_at(kind, body, pointer, detail):
    ((found, said),) = wrong(kind, body)
    assert found == pointer
    assert detail in said


def test_all_fields_are_checked_at_once():
    found = wrong(SampleBody, b'{"n": 0, "seed": -1, "x~y/z": 1}')
    assert [pointer for pointer, _ in found] == ["/n", "/seed", "/x~0y~1z"]


def test_a_million_mistakes_are_one_error():
    assert len(wrong(EncodeBody, b'{"images": [' + b"1.5," * 500_000 + b"1]}")) == 1
    assert len(wrong(DecodeBody, b'{"latents": [[' + b"null," * 500_000 + b"1]]}")) == 1
    assert len(wrong(SampleBody, b"{" + b",".join(b'"%d":0' % i for i in range(1000)) + b"}")) == 20


@pytest.mark.parametrize(
    "body",
    [
        b'{"images": [' + b"[]," * 2_000_000 + b"[]]}",
        b'{"images": [[[' + b"0," * 4_000_000 + b"0]]]}",
        b"{" + b",".join(b'"%d":0' % i for i in range(300_000)) + b"}",
    ],
)
def test_a_body_that_would_grow_beyond_measure_is_not_parsed(body):
    with pytest.raises(TooLarge, match="application/x-npy"):
        parse(EncodeBody, body)


def test_what_is_right_is_read():
    body = parse(EncodeBody, b'{"images": ["abc", [[0, 255]]], "return": ["logvar", "mean"], "model": "a@1"}')
    assert body.images == ["abc", [[0, 255]]]
    assert body.return_ == ["logvar", "mean"]
    assert parse(DecodeBody, b'{"latents": [[1, 2.5], [[[3]]]]}').latents == [[1, 2.5], [[[3]]]]
    assert parse(SampleBody, b"{}").n == 1


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body):
    for kind in (EncodeBody, DecodeBody, ReconstructBody, SampleBody):
        with contextlib.suppress(Problem):
            parse(kind, body)


def test_query_and_body_may_not_contradict_each_other():
    query = EncodeOptions.model_validate({"seed": 7, "return": ["mean,logvar"]})
    body = parse(EncodeBody, b'{"images": ["a"], "model": "m"}')
    merged = merge(query, body)
    assert (merged.seed, merged.return_, merged.model) == (7, ["mean", "logvar"], "m")
    assert merge(query, parse(EncodeBody, b'{"images": ["a"], "seed": 7}')).seed == 7
    with pytest.raises(InvalidRequest) as refused:
        merge(query, parse(EncodeBody, b'{"images": ["a"], "seed": 8, "return": ["mean"]}'))
    assert [error.pointer for error in refused.value.errors] == ["/return", "/seed"]


def test_a_query_parameter_at_its_default_leaves_the_choice_to_the_body():
    query = EncodeOptions.model_validate({"return": ["mean"]})
    body = parse(EncodeBody, b'{"images": ["a"], "return": ["logvar"]}')
    assert merge(query, body).return_ == ["logvar"]
    assert merge(query, parse(EncodeBody, b'{"images": ["a"]}')).return_ == ["mean"]
