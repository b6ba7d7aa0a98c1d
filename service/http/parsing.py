"""JSON bodies, query strings and forms as pydantic models, and pydantic's complaints as problems."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError

from service.core.problems import InvalidRequest, Pointer, TooLarge
from service.http.errors import invalid
from service.operations.fields import Options, lists

B = TypeVar("B", bound=BaseModel)
O = TypeVar("O", bound=Options)  # noqa: E741

# What a parsed body can take in memory, measured in bytes for each of these characters: a value in a list,
# a list of its own, a field that does not belong there. `[[],[],…` is 30 times as large parsed as sent.
_COST = {b",": 70, b"[": 60, b":": 1200}
_MAX_COST = 96 << 20


def parse(kind: type[B], data: bytes) -> B:
    """A JSON body as its model; InvalidRequest points at every place that is wrong."""
    if sum(cost * data.count(sign) for sign, cost in _COST.items()) > _MAX_COST:
        raise TooLarge(
            "The body has too many values for JSON; send arrays as application/x-npy, or fewer at a time."
        )
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise invalid(_plain(error)) from None


def merge(query: Options, body: O) -> O:
    """The options of a request that has some in the query and some in the body.

    InvalidRequest where the two contradict each other. A query parameter that equals its default never does:
    API pages and generated clients send those without being asked.
    """
    fields = type(query).model_fields
    sent = {
        name
        for name in query.model_fields_set
        if getattr(query, name) != fields[name].get_default(call_default_factory=True)
    }
    twice = [
        Pointer(
            pointer=f"/{fields[name].alias or name}",
            location="body",
            detail="differs from the query parameter of this name",
        )
        for name in sorted(sent & body.model_fields_set)
        if getattr(query, name) != getattr(body, name)
    ]
    if twice:
        raise InvalidRequest(
            "The query and the body contradict each other; send each option once.", errors=twice
        )
    return body.model_copy(update={name: getattr(query, name) for name in sent})


@lru_cache(1024)  # options are frozen, and most requests have none, or those of the last one
def parse_query(kind: type[O], query: bytes) -> O:
    """The options of a query string, as FastAPI reads them: the last of several values, lists whole."""
    values: dict[str, Any] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        values[name] = [*values.get(name, ()), value] if name in lists(kind) else value
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        raise invalid({"loc": ("query", *each["loc"]), "msg": each["msg"]} for each in errors) from None


def parse_form(kind: type[O], fields: dict[str, list[str]]) -> O:
    """The options of a form, written as in a query; options that are not lists may be there once."""
    values = {
        name: found if name in lists(kind) or len(found) > 1 else found[0] for name, found in fields.items()
    }
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise invalid(_plain(error)) from None


_EXPECTED = {
    "images": "should be an image file in base64, or whole numbers 0…255 in nested lists [h][w] or [h][w][c]",
    "latents": "should be nested lists of finite numbers, in the shape of the model's latents",
}


def _plain(error: ValidationError) -> Iterator[dict[str, Any]]:
    """Pydantic's errors with `loc` as in the body, and one error for a value that is none of several types.

    For such a value pydantic reports each type that does not fit; the one that got deepest is the one meant.
    """
    deepest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        field, *rest = each["loc"] or ("",)
        if field in _EXPECTED and rest:
            loc = (field, *(part for part in rest if isinstance(part, int)))
            known = deepest.get(loc[:2])
            wrong_kind = each["type"] in ("string_type", "list_type")
            if known and (len(known["loc"]) - 1, not known["wrong_kind"]) >= (len(loc), not wrong_kind):
                continue
            message = _EXPECTED[field] if wrong_kind else each["msg"]
            deepest[loc[:2]] = {"loc": ("body", *loc), "msg": message, "wrong_kind": wrong_kind}
        else:
            deepest[each["loc"]] = {"loc": ("body", *each["loc"]), "msg": each["msg"]}
    yield from deepest.values()
