"""The documentation of the API: committed, complete, and true to its last example."""

import json

import httpx
import pytest

from service.core.problems import MEDIA_TYPE, ProblemDetails, kinds
from service.http import examples, openapi
from service.http.negotiation import JSON
from service.operations import fields as schemas
from service.operations import latent_fields as latent_schemas
from tests.checkout import ROOT

COMMITTED = ROOT / "docs/openapi.json"
DOCUMENT = openapi.document()
OPERATIONS = [
    (method.upper(), path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def example(reference):
    return DOCUMENT["components"]["examples"][reference["$ref"].rpartition("/")[2]]


def test_the_committed_document_is_the_one_of_this_code():
    assert json.loads(COMMITTED.read_text(encoding="utf-8")) == json.loads(json.dumps(DOCUMENT)), (
        "the API and docs/openapi.json differ; `python -m service.http.openapi > docs/openapi.json` writes it"
    )


def test_every_body_and_every_answer_has_an_example():
    for method, path, operation in OPERATIONS:
        places = [operation.get("requestBody", {}), *operation["responses"].values()]
        for media_type, content in (each for place in places for each in place.get("content", {}).items()):
            assert content["examples"], (method, path, media_type)
            for each in content["examples"].values():
                assert each.get("summary") or example(each)["summary"]


def test_every_problem_has_an_example_where_it_belongs():
    found = DOCUMENT["components"]["examples"]
    for kind in kinds():
        details = ProblemDetails.model_validate(found[kind.slug]["value"])
        assert (details.type, details.title, details.status) == (
            f"/problems/{kind.slug}",
            kind.title,
            kind.status,
        )
        assert bool(details.errors) == (kind.status == 422)
    shown = {
        (int(status), slug)
        for _, _, operation in OPERATIONS
        for status, response in operation["responses"].items()
        for slug in response["content"].get(MEDIA_TYPE, {}).get("examples", {})
    }
    # A path with that method is documented, so this one has no place among the operations.
    missing = {(kind.status, kind.slug) for kind in kinds()} - shown
    assert missing == {(405, "method-not-allowed")}


def test_examples_of_answers_are_such_answers():
    for kind in openapi.SCHEMAS:
        if kind is not ProblemDetails:
            for _, _, value in examples.VALUES[kind.__name__]:
                kind.model_validate(value)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/encode", schemas.EncodeBody),
        ("/decode", schemas.DecodeBody),
        ("/reconstruct", schemas.ReconstructBody),
        ("/sample", schemas.SampleBody),
        ("/score", latent_schemas.ScoreBody),
        ("/interpolate", latent_schemas.InterpolateBody),
        ("/traverse", latent_schemas.TraverseBody),
        ("/arithmetic", latent_schemas.ArithmeticBody),
        ("/similarity", latent_schemas.SimilarityBody),
    ],
)
def test_every_example_of_a_body_is_answered(mnist, path, kind):
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]
    assert set(content[JSON]["examples"]) == {name for name, _, _ in examples.VALUES[kind.__name__]}
    for reference in content[JSON]["examples"].values():
        answer = httpx.post(f"{mnist}{path}", json=example(reference)["value"])
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "mnist@1"


@pytest.mark.parametrize(
    ("slug", "method", "path", "options"),
    [
        ("invalid-request", "GET", "/sample?n=0", {}),
        ("bad-image", "POST", "/encode", {"json": {"images": ["aGVsbG8="]}}),
        ("wrong-shape", "POST", "/decode", {"json": {"latents": [[1, 2, 3]]}}),
        ("not-found", "GET", "/encoded", {}),
        ("unknown-model", "GET", "/sample?model=unknown", {}),
        ("method-not-allowed", "GET", "/encode", {}),
        ("not-acceptable", "POST", "/encode", {"headers": {"Accept": "image/png"}}),
        ("wrong-model", "GET", "/sample?model=mnist@9", {}),
        ("too-large", "GET", "/sample?n=257", {}),
        ("unsupported-media-type", "POST", "/decode", {"headers": {"Content-Type": "text/plain"}}),
    ],
)
def test_every_example_of_a_problem_is_what_is_answered(mnist, slug, method, path, options):
    answer = httpx.request(method, f"{mnist}{path}", **options)
    expected = DOCUMENT["components"]["examples"][slug]["value"]
    assert answer.json() | {"instance": ""} == expected | {"instance": ""}
    assert answer.status_code == expected["status"]
