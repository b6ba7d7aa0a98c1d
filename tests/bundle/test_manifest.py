"""The manifest accepts the documented format and refuses unsafe names."""

import json

import pytest
from pydantic import ValidationError

from vaeserve.bundle.likelihood import Bernoulli
from vaeserve.bundle.manifest import ImageSpec, Manifest


def test_the_documented_example_is_a_manifest():
    example = {
        "format": 1, "name": "mnist", "version": 1, "created": "2026-11-22T12:00:00Z",
        "image": {"height": 28, "width": 28, "channels": 1, "levels": 256, "fit": "contain"},
        "latent": {"shape": [32], "kl": [2.1, 0.9]},
        "likelihood": {"kind": "gaussian", "scale": 0.07},
        "prior": {"kind": "normal", "file": None}, "labels": ["0", "1"],
        "calibration": None, "map": None,
        "metrics": {"elbo": {"value": 0.0, "n": 10000, "seed": 0}},
        "training": {"config": {}, "data": {"digest": "…", "n": 60000}, "code": "…"},
        "tolerance": {"latent": 1e-3, "pixels": 1e-3, "levels": 1},
        "files": {"encoder.onnx": {"sha256": "0" * 64, "bytes": 1}},
        "libraries": {"torch": "2.13.0", "onnxruntime": "1.32.0"},
    }  # fmt: skip
    assert Manifest.model_validate(example).reference == "mnist@1"
    nothing = dict.fromkeys(["likelihood", "prior", "labels", "calibration", "map"])
    assert Manifest.model_validate(example | nothing).prior is None


@pytest.mark.parametrize("name", ["stats", "Mnist", "", "a/b", "..", "x" * 65, "-a", "mnist\n"])
def test_names_that_break_in_a_url_or_a_path_are_refused(bundle, name):
    record = json.loads((bundle / "manifest.json").read_text())
    with pytest.raises(ValidationError):
        Manifest.model_validate(record | {"name": name})


def test_likelihoods_read_and_write_their_kind_and_scale(bundle):
    record = json.loads((bundle / "manifest.json").read_text())
    for likelihood in ('{"kind":"bernoulli","scale":null}', '{"kind":"logistic","scale":0.07}'):
        manifest = Manifest.model_validate(record | {"likelihood": json.loads(likelihood)})
        assert f'"likelihood":{likelihood}' in manifest.model_dump_json()
    assert Manifest.model_validate(record | {"likelihood": {"kind": "bernoulli"}}).likelihood == Bernoulli()
    with pytest.raises(ValidationError, match="'bernoulli', 'gaussian', 'logistic'"):
        Manifest.model_validate(record | {"likelihood": {"kind": "poisson"}})


def test_an_absent_prior_is_n_0_1_and_null_is_none(bundle):
    record = json.loads((bundle / "manifest.json").read_text())
    del record["prior"]
    assert Manifest.model_validate(record).prior.kind == "normal"
    assert Manifest.model_validate(record | {"prior": None}).prior is None


def test_the_shape_of_an_image_is_height_width_channels():
    assert ImageSpec(height=4, width=6, channels=3).shape == (4, 6, 3)
