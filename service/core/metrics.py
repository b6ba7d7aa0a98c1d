"""The metrics of /metrics; deploy/README.md explains each name.

In a single process the values are plain numbers. Each of several workers keeps its own in files of a folder
that the supervisor creates, and the worker that is asked adds them up (prometheus_client's multiprocess
mode). What other workers did in the last fifth of a second may be missing.

No label has unbounded values: routes are templates, and a path without a route counts as `other`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from service.core.buffered import BufferedCounter, BufferedHistogram
from vaeserve.bundle.manifest import Manifest

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it too
OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# A small model answers in a fraction of a millisecond; every deadline is below a minute.
SECONDS = (1e-4, 2.5e-4, 5e-4, *(m * 10**e for e in range(-3, 1) for m in (1, 2.5, 5)), 10, 60)
ROWS = tuple(2**e for e in range(11))
NATS = tuple(2 ** (e / 2) for e in range(27))  # 1 … 8192, each √2 times the one before
ERRORS = tuple(10 ** (e / 4) for e in range(-20, 1))  # 1e-5 … 1
MAX_KL = 1e9  # a single NaN or infinity would stay in the sum forever
MODEL = ("model", "version")
GRAPH = (*MODEL, "graph")
FUNCTION = (*MODEL, "name")  # a function or graph of a model, for the Open Inference Protocol
OIP = "vae_oip_"  # left out of /metrics: these have a series for every batch size

Run = Callable[..., tuple[NDArray[Any], ...]]
Keep = Callable[[float], None]


class GraphMetrics:
    """What one graph of one model did: its runs, their rows, and how long these waited and took."""

    def __init__(self, metrics: "Metrics", *labels: str) -> None:
        self._rows: Keep = metrics.rows.labels(*labels).keep
        self._batch_rows: Keep = metrics.batch_rows.labels(*labels).keep
        self._seconds: Keep = metrics.model_seconds.labels(*labels).keep
        self._failures = metrics.failures.labels(*labels)
        self.waited: Keep = metrics.queue_seconds.labels(*labels).keep  # seconds of one request
        self.waiting: Keep = metrics.queue_rows.labels(*labels).set  # rows in the queue now

    def counted(self, run: Run) -> Run:
        """`run`, with each call counted as one run of the graph on the rows of its first argument."""

        def counted(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
            started = perf_counter()
            try:
                results = run(*arrays)
            except Exception:
                self._failures.inc()
                raise
            self._seconds(perf_counter() - started)
            self._batch_rows(len(arrays[0]))
            self._rows(len(arrays[0]))
            return results

        return counted


class ModelMetrics:
    """What the graphs of one model did, and whether its input still looks like its training data."""

    def __init__(self, metrics: "Metrics", manifest: Manifest) -> None:
        labels = (manifest.name, str(manifest.version))
        self.encoder = GraphMetrics(metrics, *labels, "encoder")
        self.decoder = GraphMetrics(metrics, *labels, "decoder")
        self._kl = metrics.kl.labels(*labels)
        self._errors = metrics.errors.labels(*labels)
        self._scored = metrics.scored.labels(*labels).keep
        self._anomalies = metrics.anomalies.labels(*labels).keep

    def encoded(self, mean: NDArray[np.float32], logvar: NDArray[np.float32]) -> None:
        """Count the KL of posteriors, float32 [n, *latent] each."""
        # float32, unlike the KL of scores: this runs in every batch.
        with np.errstate(over="ignore", invalid="ignore"):  # a broken encoder shows in the last bucket
            terms = np.square(mean) + np.exp(logvar) - logvar - 1
        kl = 0.5 * terms.reshape(len(mean), -1).sum(axis=1, dtype=np.float64)
        self._kl.keep_all(np.fmin(kl, MAX_KL).tolist())

    def reconstructed(self, errors: NDArray[np.floating]) -> None:
        """Count the mean squared error of each image, on [0, 1]."""
        self._errors.keep_all(errors.tolist())

    def judged(self, is_anomaly: NDArray[np.bool_]) -> None:
        """Count scored images, and those that are anomalies."""
        self._scored(len(is_anomaly))
        self._anomalies(int(is_anomaly.sum()))


class Metrics:
    """All metrics of one application."""

    def __init__(self) -> None:
        # Otherwise every series gets a second one with the time of its creation, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._buffered: list[BufferedCounter | BufferedHistogram] = []

        def counter(name: str, help: str, labels: Iterable[str]) -> BufferedCounter:
            self._buffered.append(made := BufferedCounter(name, help, labels, registry=registry))
            return made

        def histogram(
            name: str, help: str, labels: Iterable[str], buckets: tuple[float, ...] = SECONDS
        ) -> BufferedHistogram:
            made = BufferedHistogram(name, help, labels, buckets=buckets, registry=registry)
            self._buffered.append(made)
            return made

        def gauge(name: str, help: str, labels: Iterable[str], across_workers: Any = "livesum") -> Gauge:
            return Gauge(name, help, labels, registry=registry, multiprocess_mode=across_workers)

        self._requests = counter("vae_requests_total", "Answers", ("route", "method", "status"))
        self._request_seconds = histogram(
            "vae_request_seconds", "From the head of a request to the head of its answer", ("route",)
        )
        self._rejections = Counter(
            "vae_rejections_total", "Requests answered with a problem", ("reason",), registry=registry
        )
        codec = histogram(
            "vae_codec_seconds",
            "Reading a body into an array (decode), writing an array into a body (encode)",
            ("direction",),
        )
        self._codec = {"read": codec.labels("decode").keep, "write": codec.labels("encode").keep}
        self.rows = counter("vae_rows_total", "Rows that went through a graph", GRAPH)
        self.batch_rows = histogram("vae_batch_rows", "Rows in one run of a graph", GRAPH, ROWS)
        self.queue_rows = gauge("vae_queue_rows", "Rows waiting for a graph", GRAPH)
        self.queue_seconds = histogram("vae_queue_seconds", "Time that a request waited for a graph", GRAPH)
        self.model_seconds = histogram("vae_model_seconds", "Time of one run of a graph", GRAPH)
        self.failures = Counter(
            "vae_failures_total",
            "Failed runs of a graph; each fails every request in its batch",
            GRAPH,
            registry=registry,
        )
        self.kl = histogram("vae_kl_nats", "KL(q(z|x) || N(0, I)) of an image", MODEL, NATS)
        self.errors = histogram(
            "vae_reconstruction_error", "Mean squared error of an image on [0, 1]", MODEL, ERRORS
        )
        self.scored = counter(
            "vae_scored_total", "Images of which /score said whether they are unusual", MODEL
        )
        self.anomalies = counter("vae_anomalies_total", "Images that /score called an anomaly", MODEL)
        self._memory = gauge("process_resident_memory_bytes", "Resident memory of all workers", ())
        # The statistics of the Open Inference Protocol, see service/core/statistics.py.
        steps = (*FUNCTION, "step")
        self.oip_requests = counter("vae_oip_requests_total", "Requests by step", steps)
        self.oip_ns = counter("vae_oip_nanoseconds_total", "Nanoseconds by step", steps)
        self.oip_last = gauge(
            "vae_oip_last_inference_milliseconds", "Time since 1970 of the last inference", FUNCTION, "max"
        )
        self.oip_runs = counter("vae_oip_runs_total", "Runs", FUNCTION)
        self.oip_rows = counter("vae_oip_rows_total", "Rows of runs", FUNCTION)
        # labels() takes a microsecond, this dictionary a tenth of one. It has as many entries as there are
        # combinations of route, method and status.
        self._answers: dict[tuple[str, str, int], tuple[Keep, Keep]] = {}

    def answered(
        self, route: str | None, method: str, status: int, seconds: Mapping[str, float], problem: str | None
    ) -> None:
        """Count one request: the seconds of its steps, and the slug of the problem it was answered with."""
        route = route or OTHER
        key = (route, method if method in METHODS else OTHER, status)
        if (keep := self._answers.get(key)) is None:
            keep = (self._requests.labels(*map(str, key)).keep, self._request_seconds.labels(route).keep)
            self._answers[key] = keep
        keep_count, keep_seconds = keep
        keep_count(1)
        if "total" in seconds:
            keep_seconds(seconds["total"])
        for step, keep_step in self._codec.items():
            if step in seconds:
                keep_step(seconds[step])
        if problem:
            self._rejections.labels(problem).inc()

    def refresh(self) -> None:
        """Count what is buffered, and measure memory."""
        for metric in self._buffered:
            metric.flush()
        if (resident := resident_bytes()) is not None:
            self._memory.set(resident)

    def text(
        self, accept: str, loaded: Iterable[tuple[Manifest, bool]], refused: Iterable[str]
    ) -> tuple[bytes, str]:
        """The body of /metrics and its media type.

        `loaded`: the manifests, and whether each is of the default model. `refused`: the folders of bundles
        that failed their checks.
        """
        public = (metric for metric in self._collect() if not metric.name.startswith(OIP))
        metrics = [*public, *_bundle_metrics(loaded, refused)]
        encode, media_type = choose_encoder(accept)
        registry = CollectorRegistry()
        registry.register(_Collected(metrics))
        return encode(registry), media_type

    def oip_counts(self) -> dict[tuple[str, ...], int]:
        """The counts of the Open Inference Protocol by the name of a sample and its labels, in order."""
        labels = (*FUNCTION, "step")
        return {
            (sample.name, *(sample.labels[label] for label in labels if label in sample.labels)): int(
                sample.value
            )
            for metric in self._collect()
            if metric.name.startswith(OIP)
            for sample in metric.samples
        }

    def _collect(self) -> Iterable[Metric]:
        folder = os.environ.get(FOLDER)
        if folder is None:
            return self._registry.collect()
        sums: Iterable[Metric] = MultiProcessCollector(None, folder).collect()  # type: ignore[no-untyped-call]
        return sums


class _Collected:
    """A collector of metrics that were collected before: encoders take only a registry."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def _bundle_metrics(loaded: Iterable[tuple[Manifest, bool]], refused: Iterable[str]) -> Iterator[Metric]:
    info = GaugeMetricFamily("vae_model_info", "1 for each loaded version", labels=(*MODEL, "default"))
    golden = GaugeMetricFamily(
        "vae_golden_check", "1: the bundle passed its checks; 0: it was refused", labels=MODEL
    )
    kl = GaugeMetricFamily("vae_kl_reference_nats", "Mean KL on the model's own data", labels=MODEL)
    error = GaugeMetricFamily(
        "vae_reconstruction_error_reference", "Mean squared error on the model's own data", labels=MODEL
    )
    for manifest, default in loaded:
        labels = (manifest.name, str(manifest.version))
        info.add_metric((*labels, str(default).lower()), 1)
        golden.add_metric(labels, 1)
        if manifest.latent.kl:
            kl.add_metric(labels, sum(manifest.latent.kl))
        if mse := manifest.metrics.get("mse"):
            error.add_metric(labels, mse.value)
    for path in refused:
        golden.add_metric(Path(path).parts[-2:], 0)
    yield from (info, golden, kl, error)


def resident_bytes(pid: int | str = "self") -> int | None:
    """Resident memory of a process; None where the system has no /proc."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
