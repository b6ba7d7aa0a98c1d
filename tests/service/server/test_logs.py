"""Logs and traces, as collectors receive them from a running service."""

import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.live import run, running


@pytest.mark.parametrize("workers", ["1", "2"])
def test_json_logs_have_one_object_per_line(workers, repository, tmp_path):
    flags = ["--access-log", "--log-format", "json", "--default-model", "tiny", "--workers", workers]
    with running(repository, *flags, log=tmp_path / "log") as (process, url):
        httpx.get(f"{url}/sample?n=2&seed=12345", headers={"X-Request-ID": "abc-1"})
        httpx.get(f'{url}/no"thing%0A', headers={"X-Request-ID": "abc-2"})
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    text = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    logged = {line["request_id"]: line for line in lines if line["request_id"] in ("abc-1", "abc-2")}
    first, second = logged["abc-1"], logged["abc-2"]
    assert (first["method"], first["path"], first["status"], first["level"]) == (
        "GET",
        "/sample",
        200,
        "info",
    )
    assert 0 < first["milliseconds"] < 60_000
    assert first["message"] == f"GET /sample 200 {first['milliseconds']:.1f} ms"
    assert "problem" not in first
    assert (second["status"], second["problem"]) == (404, "not-found")
    assert "12345" not in text.replace(str(first["milliseconds"]), "").replace(first["time"], "")
    banner = [line for line in text.splitlines() if not line.startswith("{")]
    assert banner[0].startswith("vaeserve")
    assert all(line.startswith("  ") for line in banner[1:])


@pytest.fixture
def collector():
    """An OTLP collector, as its URL and the spans it received."""
    spans = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                request = ExportTraceServiceRequest.FromString(body)
                spans.extend(
                    span for r in request.resource_spans for scope in r.scope_spans for span in scope.spans
                )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()


def test_traces_reach_the_collector_and_continue_the_trace_of_the_caller(repository, tmp_path, collector):
    endpoint, spans = collector
    trace, parent = os.urandom(16), os.urandom(8)
    flags = ["--otel", "--default-model", "tiny"]
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"}
    with running(repository, *flags, log=tmp_path / "log", **environment) as (process, url):
        header = {"traceparent": f"00-{trace.hex()}-{parent.hex()}-01"}
        assert httpx.get(f"{url}/models/tiny/sample?n=2", headers=header).status_code == 200
        assert httpx.post(f"{url}/encode", headers=header).status_code == 415
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    ours = {span.name: span for span in spans if span.trace_id == trace}
    assert set(ours) == {"GET /models/{name}/sample", "POST /encode"}
    assert {span.parent_span_id for span in ours.values()} == {parent}
    attributes = {each.key: each.value for each in ours["POST /encode"].attributes}
    assert attributes["http.response.status_code"].int_value == 415
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_otel_without_a_collector_is_an_error(free_port):
    ended = run("--otel", "--port", free_port)
    assert ended.returncode == 1
    assert ended.stderr == "vae-serve: --otel needs OTEL_EXPORTER_OTLP_ENDPOINT, the URL of a collector\n"
