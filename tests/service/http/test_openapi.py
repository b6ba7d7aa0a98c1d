"""The OpenAPI document: committed, complete, and true to its last example."""

import json

import httpx
import pytest

from service.core.problems import MEDIA_TYPE, ProblemDetails, kinds
from service.http import examples, openapi
from service.http.info import INFO
from service.http.negotiation import JSON
from service.operations.operation import all_operations
from service.settings import Settings
from tests.bundles import make_bundle
from tests.checkout import ROOT
from tests.conftest import in_a_thread

COMMITTED = ROOT / "docs/openapi.json"
DOCUMENT = openapi.document()
OPERATIONS = [
    (method.upper(), path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def example(document, reference):
    return document["components"]["examples"][reference["$ref"].rpartition("/")[2]]


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
                assert each.get("summary") or example(DOCUMENT, each)["summary"]


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
    for each in (*all_operations(), *INFO):
        for _, _, value in each.answers(examples.PLACEHOLDER):
            each.result.model_validate(value)


@pytest.fixture(scope="module", params=["mnist", "colour", "plain", "two"])
def served(request, mnist, tmp_path_factory):
    """A service of mnist, of colour images with a latent map, of a model without calibration, map and KL, or
    of two models of which none is the default."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "mnist":
        with httpx.Client(base_url=mnist) as client:
            yield client
        return
    if request.param in ("colour", "two"):
        make_bundle(folder, "colour", 12, 10, 3, (2, 3, 4))
    if request.param == "plain":
        make_bundle(folder, "plain", held_out=0)
    if request.param == "two":
        make_bundle(folder, "other")
    with in_a_thread(Settings(models=folder, access_log=False)) as url, httpx.Client(base_url=url) as client:
        yield client


def test_every_request_on_the_page_is_answered(served):
    """Each example with every parameter as the page fills it in: examples of paths, defaults of queries."""
    document = served.get("/openapi.json").json()
    names_model = not any(each["default"] for each in served.get("/models").json()["models"])
    sent = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            url, query = path, {}
            for parameter in operation.get("parameters", []):
                if "$ref" in parameter:
                    parameter = document["components"]["parameters"][parameter["$ref"].rpartition("/")[2]]
                    url = url.replace(f"{{{parameter['name']}}}", str(parameter["example"]))
                elif (default := parameter["schema"].get("default")) is not None:
                    query[parameter["name"]] = default
            content = operation.get("requestBody", {}).get("content", {})
            bodies = [
                example(document, each)["value"]
                for each in content.get(JSON, {}).get("examples", {}).values()
            ]
            if method == "get":
                bodies = [None]
            for body in bodies:
                answer = served.request(method, url, params=query, json=body)
                without = (names_model and path == "/sample" and method == "get") or (
                    path.endswith("/map") and "has no map" in answer.text
                )
                assert without or answer.status_code == 200, (path, body, answer.text)
                sent += 1
    assert sent > 50


def test_each_operation_appears_once_outside_the_group_of_variants():
    names = [path for _, path, operation in OPERATIONS if operation["tags"] != [openapi.BY_NAME]]
    assert {f"/{each.name}" for each in all_operations() if each.default_model} <= set(names)
    assert "/models/{name}/map" in names
    assert not [path for path in names if path.startswith("/models/{name}/") and "map" not in path][1:]
    assert {tag for _, _, operation in OPERATIONS for tag in operation["tags"]} == set(openapi.TAGS)
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(ids)) == len(ids)


def test_locks_are_shown_only_where_a_key_is_needed(repository):
    assert "security" not in DOCUMENT
    assert "securitySchemes" not in DOCUMENT["components"]
    with in_a_thread(Settings(models=repository, default_model="tiny", api_keys="secret")) as url:
        document = httpx.get(f"{url}/openapi.json").json()
    assert document["security"] == [{"ApiKey": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert "security" not in document["paths"]["/encode"]["post"]
    assert "/models/{name}/reload" in document["paths"]


def test_the_document_names_its_server_and_its_license():
    assert DOCUMENT["servers"] == [{"url": "/", "description": "this server"}]
    assert DOCUMENT["info"]["license"]["identifier"] == "Apache-2.0"


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
