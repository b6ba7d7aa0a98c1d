"""Schemathesis against a live service: what the documentation promises holds for requests right and wrong."""

import json

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.checkout import ROOT

pytestmark = pytest.mark.heavy

DOCUMENT = json.loads((ROOT / "docs/openapi.json").read_text(encoding="utf-8"))
schema = schemathesis.openapi.from_dict(DOCUMENT)

# Not checked: that all data which fit the schema are accepted. A schema cannot say that a string is an image
# file in base64, that latents have the shape of a model, or which models are loaded.
NOT_CHECKED = [positive_data_acceptance]


@schemathesis.serializer("application/x-npy", "image/bmp")
def as_it_is(context, value):
    return value if isinstance(value, bytes) else str(value).encode()


@schema.parametrize()
@hypothesis.settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_documented(case, mnist):
    case.call_and_validate(base_url=mnist, excluded_checks=NOT_CHECKED)
