"""/metrics: every number is compared with the requests that a service was sent."""

import io
import re
from dataclasses import replace

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.core.metrics import Metrics, ModelMetrics
from service.settings import Settings
from tests.bundles import make_bundle, make_draft
from tests.checkout import ROOT
from tests.conftest import in_a_thread
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import publish, read_bundle
from vaeserve.bundle.manifest import LatentSpec, Metric


def parsed(url):
    """Every sample of /metrics: {(name, labels): value}."""
    answer = httpx.get(f"{url}/metrics", timeout=30)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples, name, **labels):
    """The sum over the samples that have these labels; None when there is none."""
    found = [v for (n, have), v in samples.items() if n == name and labels.items() <= dict(have).items()]
    return sum(found) if found else None


@pytest.fixture
def models(tmp_path):
    """tiny@1 with its KL and squared error in the manifest, and tiny@2, which is broken."""
    (tmp_path / "draft").mkdir()
    draft = make_draft(tmp_path / "draft")
    latent, metrics = LatentSpec(shape=(4,), kl=(1.0, 2.0, 0.5, 0.0)), {"mse": Metric(value=0.07, n=10)}
    manifest = draft.manifest.model_copy(update={"latent": latent, "metrics": metrics})
    publish(tmp_path / "models", "tiny", replace(draft, manifest=manifest))
    (make_bundle(tmp_path / "models") / "decoder.onnx").write_bytes(b"torn")
    return tmp_path / "models"


def test_the_metrics_count_the_requests_and_the_work(models):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    npy = {"Content-Type": "application/x-npy"}
    body = _npy(images)
    with in_a_thread(Settings(models=models, access_log=False)) as url, httpx.Client(base_url=url) as http:
        before = parsed(url)
        for _ in range(3):
            assert http.post("/encode", content=body, headers=npy).status_code == 200
        answer = http.post("/models/tiny/reconstruct", content=body, headers=npy).json()
        assert http.get("/sample?n=7&seed=1").status_code == 200
        assert http.post("/encode", content=b"no image", headers={"Content-Type": "image/png"}).is_error
        assert http.get("/models/none").status_code == 404
        assert http.request("DELETE", "/sample").status_code == 405
        for path in range(20):  # unknown paths share one series
            assert http.get(f"/{path}.php").status_code == 404
        samples = parsed(url)

    def grown(name, **labels):
        return (value(samples, name, **labels) or 0) - (value(before, name, **labels) or 0)

    requests = "vae_requests_total"
    assert grown(requests, route="/encode", method="POST", status="200") == 3
    assert grown(requests, route="/encode", status="422") == 1
    assert grown(requests, route="/models/{name}/reconstruct", status="200") == 1
    assert grown(requests, route="/models/{name}", status="404") == 1
    assert grown(requests, route="/sample", method="DELETE", status="405") == 1
    assert grown(requests, route="other", method="GET", status="404") == 20
    assert not [labels for name, labels in samples if "php" in str(labels)]
    assert grown("vae_request_seconds_count", route="/encode") == 4
    reasons = {"bad-image": 1, "unknown-model": 1, "method-not-allowed": 1, "not-found": 20}
    assert {reason: grown("vae_rejections_total", reason=reason) for reason in reasons} == reasons

    assert grown("vae_rows_total", model="tiny", version="1", graph="encoder") == 20
    assert grown("vae_rows_total", model="tiny", version="1", graph="decoder") == 12
    assert grown("vae_batch_rows_count", graph="encoder") == 4
    assert grown("vae_batch_rows_sum", graph="encoder") == 20
    assert grown("vae_batch_rows_bucket", graph="decoder", le="8.0") == 2
    assert grown("vae_batch_rows_bucket", graph="decoder", le="4.0") == 0
    assert grown("vae_model_seconds_count", graph="decoder") == 2
    assert grown("vae_queue_seconds_count", graph="decoder") == 2
    assert grown("vae_model_seconds_sum", graph="decoder") > 0
    assert value(samples, "vae_queue_rows", graph="encoder") == 0
    assert grown("vae_codec_seconds_count", direction="decode") == 5  # the bad image counts too
    assert grown("vae_codec_seconds_count", direction="encode") == 5
    assert 20e6 < value(samples, "process_resident_memory_bytes") < 2e9

    mean, logvar = Engine(read_bundle(models / "tiny/1")).encode(images)
    kl = 0.5 * (mean**2 + np.exp(logvar) - logvar - 1).sum()
    assert grown("vae_kl_nats_count", model="tiny") == 20
    assert grown("vae_kl_nats_sum", model="tiny") == pytest.approx(4 * kl, rel=1e-4)
    assert value(samples, "vae_kl_reference_nats", model="tiny", version="1") == 3.5
    assert grown("vae_reconstruction_error_count", model="tiny") == 5
    assert grown("vae_reconstruction_error_sum") == pytest.approx(sum(answer["error"]), rel=1e-4)
    assert value(samples, "vae_reconstruction_error_reference", model="tiny", version="1") == 0.07

    assert value(samples, "vae_model_info", model="tiny", version="1", default="true") == 1
    assert value(samples, "vae_golden_check", model="tiny", version="1") == 1
    assert value(samples, "vae_golden_check", model="tiny", version="2") == 0


def test_the_documentation_lists_exactly_these_metrics(models):
    """Dashboards and alerts are written from the list in deploy/README.md."""
    page = (ROOT / "deploy/README.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `((?:vae|process)_\w+)` \| (\w+)", page, re.MULTILINE))
    with in_a_thread(Settings(models=models, access_log=False)) as url:
        text = httpx.get(f"{url}/metrics").text
    assert documented.pop("vae_worker_restarts_total") == "counter"  # only a supervisor has it
    assert dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)) == documented


def test_the_accept_header_selects_openmetrics(models):
    with in_a_thread(Settings(models=models, access_log=False)) as url:
        answer = httpx.get(
            f"{url}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
        )
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize("broken", [np.nan, np.inf, 200.0])
def test_a_broken_posterior_counts_in_the_last_bucket(broken, models):
    metrics = Metrics()
    model = ModelMetrics(metrics, read_bundle(models / "tiny/1").manifest)
    good, bad = np.zeros((2, 4), np.float32), np.full((1, 4), broken, np.float32)
    model.encoded(np.concatenate([good, bad]), np.concatenate([good, bad]))
    metrics.refresh()
    text = metrics.text("", [], [])[0].decode()
    assert 'vae_kl_nats_bucket{le="1.0",model="tiny",version="1"} 2.0' in text
    assert 'vae_kl_nats_bucket{le="8192.0",model="tiny",version="1"} 2.0' in text
    assert 'vae_kl_nats_count{model="tiny",version="1"} 3.0' in text
    assert "NaN" not in text
    assert "Inf" not in text.replace('le="+Inf"', "")


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
