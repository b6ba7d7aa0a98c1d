"""`/sample?prior=…&label=…`: what a model samples from is the caller's choice, where it has one."""

from dataclasses import replace

import httpx
import numpy as np
import pytest
from scipy.stats import norm

from service.settings import Settings
from tests.bundles import make_bundle, make_draft, with_flow
from tests.conftest import in_a_thread
from vaeserve import Client
from vaeserve.bundle.files import publish
from vaeserve.bundle.manifest import PriorSpec
from vaeserve.bundle.noise import noise
from vaeserve.bundle.prior import Mixture, write_prior
from vaeserve.bundle.repository import open_engine
from vaeserve.client.errors import BadRequest

LABELS = ("cat", "1", "dog", "bird")  # a name may look like a number


def point(*place):
    """A mixture that is (almost) one point."""
    return Mixture(np.ones(1), np.array([place], np.float32), np.eye(4, dtype=np.float32)[None] * 1e-6)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """labelled@1 with a mixture of all images and of three of its four labels; plain@1 with none; flowing@1
    with a flow beside those mixtures; bare@1 with a flow without its
    density; priorless@1 with no prior at all."""
    folder, work, flowing, bare, priorless = (
        tmp_path_factory.mktemp(name) for name in ("models", "draft", "flow", "bare", "priorless")
    )
    draft = make_draft(work)
    by_label = {0: point(2, 0, 0, 0), 1: point(0, 2, 0, 0), 2: point(0, 0, 2, 0)}
    write_prior(work / "prior.npz", point(1, 1, 1, 1), by_label)
    prior = PriorSpec(kind="gmm", file="prior.npz")
    manifest = draft.manifest.model_copy(update={"labels": LABELS, "prior": prior})
    publish(folder, "labelled", replace(draft, manifest=manifest))
    make_bundle(folder, "plain")
    draft = make_draft(flowing)
    write_prior(flowing / "prior.npz", point(1, 1, 1, 1), by_label)
    draft = with_flow(replace(draft, manifest=draft.manifest.model_copy(update={"labels": LABELS})))
    publish(folder, "flowing", draft)
    publish(folder, "bare", with_flow(make_draft(bare), density=False))
    draft = make_draft(priorless)
    publish(folder, "priorless", replace(draft, manifest=draft.manifest.model_copy(update={"prior": None})))
    return folder


@pytest.fixture(scope="module")
def url(repository):
    with in_a_thread(Settings(models=repository, default_model="labelled", access_log=False)) as url:
        yield url


def latents(answer):
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["latents"])


@pytest.mark.parametrize(
    ("label", "place"), [("dog", 2), ("2", 2), ("cat", 0), ("0", 0), ("1", 1)], ids=lambda value: str(value)
)
def test_a_label_is_sampled_by_name_or_else_by_number(url, label, place):
    expected = 2 * np.eye(4)[[place, place]]
    query = {"label": label, "n": 2, "return": "latents"}
    np.testing.assert_allclose(latents(httpx.get(f"{url}/sample", params=query)), expected, atol=1e-4)
    body = {"label": label, "n": 2, "return": ["latents"], "prior": "mixture"}
    np.testing.assert_allclose(latents(httpx.post(f"{url}/sample", json=body)), expected, atol=1e-4)


def test_a_label_s_number_may_be_a_number_in_json(url):
    sent = {"label": 2, "return": ["latents"]}
    np.testing.assert_allclose(latents(httpx.post(f"{url}/sample", json=sent))[0], [0, 0, 2, 0], atol=1e-4)


def test_the_prior_is_the_caller_s_choice(url):
    served, mixture, normal = (
        latents(httpx.get(f"{url}/sample?seed=7&return=latents{more}"))
        for more in ("", "&prior=mixture", "&prior=normal")
    )
    np.testing.assert_array_equal(served, mixture)
    np.testing.assert_allclose(mixture[0], 1, atol=1e-4)
    np.testing.assert_allclose(normal, noise(7, range(1), (4,)), rtol=1e-6)


@pytest.mark.parametrize(
    ("query", "pointer", "said"),
    [
        ("label=bird", "/label", "`label` is 'bird', which labelled@1 does not know; it knows cat, 1, dog"),
        ("label=3", "/label", "is '3', which labelled@1 does not know"),
        ("label=-1", "/label", "is '-1', which labelled@1 does not know"),
        ("label=" + 300 * "9", "/label", "at most 256 characters"),
        ("label=cat&prior=normal", "/label", "cannot be combined with the prior 'normal'; leave out `prior`"),
        ("label=cat&model=plain", "/label", "plain@1 was published without labels"),
        ("prior=mixture&model=plain", "/prior", "is 'mixture', which plain@1 does not have; it has normal"),
        ("prior=flow", "/prior", "is 'flow', which labelled@1 does not have; it has normal, mixture"),
        (
            "prior=mixture&model=bare",
            "/prior",
            "is 'mixture', which bare@1 does not have; it has normal, flow",
        ),
        (
            "label=cat&prior=flow&model=flowing",
            "/label",
            "cannot be combined with the prior 'flow'; leave out `prior`",
        ),
        ("prior=flat", "/prior", "'normal', 'mixture' or 'flow'"),
    ],
)
def test_what_a_model_cannot_sample_is_a_422_that_says_what_it_can(url, query, pointer, said):
    answer = httpx.get(f"{url}/sample?{query}")
    body = answer.json()
    assert (answer.status_code, body["type"]) == (422, "/problems/invalid-request")
    assert body["errors"][0]["pointer"] == pointer
    assert body["errors"][0]["location"] == "query"
    assert said in body["detail"]
    asked = {name: value for name, _, value in (part.partition("=") for part in query.split("&"))}
    posted = httpx.post(f"{url}/sample", json=asked).json()
    assert posted["errors"][0]["location"] == "body"
    assert posted["errors"][0]["pointer"] == pointer


def test_a_flow_is_sampled_by_default_and_the_others_where_they_are_asked_for(url, repository):
    eps, asked = noise(7, range(3), (4,)), f"{url}/sample?model=flowing&seed=7&n=3&return=latents"
    for more, expected in {
        "": 2 * eps + 1,
        "&prior=flow": 2 * eps + 1,
        "&temperature=0.5": eps + 1,
        "&temperature=0": np.ones((3, 4)),
        "&prior=normal": eps,
        "&prior=mixture": np.ones((3, 4)),
        "&label=dog": 2 * np.eye(4)[[2, 2, 2]],
    }.items():
        np.testing.assert_allclose(latents(httpx.get(asked + more)), expected, atol=1e-4, err_msg=more)
    cut = latents(httpx.get(f"{asked}&truncation=0.5"))
    assert np.abs(cut - 1).max() <= 1 + 1e-6
    body = {"model": "flowing", "seed": 7, "return": ["latents"]}
    np.testing.assert_allclose(latents(httpx.post(f"{url}/sample", json=body)), 2 * eps[:1] + 1, rtol=1e-5)
    with Client(url, model="flowing") as client:
        images = client.sample(3, seed=7, prior="flow").images
    engine = open_engine(repository / "flowing/1")
    np.testing.assert_array_equal(images, engine.decode(2 * eps + 1))


def test_a_flow_s_protocol_model_samples_it_too(url):
    asked = {"inputs": [{"name": "seed", "datatype": "INT64", "shape": [2, 1], "data": [7, 9]}]}
    answer = httpx.post(f"{url}/v2/models/flowing.sample/infer", json=asked).json()
    z = next(each["data"] for each in answer["outputs"] if each["name"] == "z")
    expected = np.concatenate([noise(seed, range(1), (4,)) for seed in (7, 9)])
    np.testing.assert_allclose(np.reshape(z, (2, 4)), 2 * expected + 1, rtol=1e-5)


def test_scores_take_the_flow_s_density_or_say_that_there_is_none(url, repository):
    image = np.zeros((1, 8, 8, 1), int).tolist()
    scores = httpx.post(f"{url}/score?model=flowing", json={"images": image}).json()
    mean = open_engine(repository / "flowing/1").encode(np.zeros((1, 8, 8, 1), np.uint8)).mean
    assert scores["log_prior"] == pytest.approx([norm(1, 2).logpdf(mean).sum()], rel=1e-5)
    answer = httpx.post(f"{url}/score?model=bare", json={"images": image})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/wrong-model")
    assert "density.onnx" in answer.json()["detail"]


def test_the_client_asks_for_prior_and_label(url, repository):
    engine = open_engine(repository / "labelled/1")
    with Client(url) as client:
        (dog,) = client.sample(seed=1, label="dog").images
        np.testing.assert_array_equal(dog, client.sample(seed=1, label=2, prior="mixture").images[0])
        np.testing.assert_array_equal(dog, engine.decode(np.float32([[0, 0, 2, 0]]))[0])
        normal = client.sample(3, seed=1, prior="normal").images
        np.testing.assert_array_equal(normal, engine.decode(noise(1, range(3), (4,))))
        with pytest.raises(BadRequest, match="is 'horse', which labelled@1 does not know"):
            client.sample(label="horse")


@pytest.mark.parametrize("query", ["prior=normal", "prior=mixture", "label=dog", "temperature=0.5"])
def test_a_row_of_a_seed_is_the_same_however_it_is_asked_for(url, query):
    def latents(n, first):
        answer = httpx.get(f"{url}/sample?{query}&return=latents&seed=7&n={n}&first={first}", timeout=60)
        return np.array(answer.json()["latents"])

    whole = latents(6, 0)
    np.testing.assert_array_equal(np.concatenate([latents(2, 0), latents(1, 2), latents(3, 3)]), whole)
    assert len(np.unique(whole, axis=0)) == 6
    assert latents(1, (1 << 31) - 1).shape == (1, 4)


def test_the_first_row_is_a_number_that_there_can_be(url):
    for first in ("-1", "x", str(1 << 31)):
        answer = httpx.get(f"{url}/sample?first={first}", timeout=60)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/first"


def test_another_part_of_a_seed_has_another_tag(url):
    tags = [
        httpx.get(f"{url}/sample?seed=7&first={first}", timeout=60).headers["ETag"] for first in (0, 1, 1)
    ]
    assert tags[0] != tags[1] == tags[2]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_model_without_a_prior_cannot_be_sampled_but_decodes(url, method):
    answer = httpx.request(method, f"{url}/models/priorless/sample", json={} if method == "POST" else None)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/no-prior")
    assert "publish a version with one, or send latents to /decode" in answer.json()["detail"]
    assert httpx.post(f"{url}/models/priorless/decode", json={"latents": [[0, 0, 0, 0]]}).status_code == 200
