"""What /metrics tells Prometheus; deploy/README.md says what each name means.

In one process the values are plain numbers. Of several workers each keeps its own in files of a folder that
the supervisor makes, and whoever is asked adds them up (prometheus_client's multiprocess mode); what others
did in the last fifth of a second may be missing.

No label has unbounded values: routes are templates, whatever is none of them counts as `other`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from vaeserve.bundle.manifest import Manifest

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it too
OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# A small model answers in a fraction of a millisecond; a minute is beyond every deadline.
SECONDS = (1e-4, 2.5e-4, 5e-4, *(m * 10**e for e in range(-3, 1) for m in (1, 2.5, 5)), 10, 60)
ROWS = tuple(2**e for e in range(11))
NATS = tuple(2 ** (e / 2) for e in range(27))  # 1 … 8192, each √2 times the one before
ERRORS = tuple(10 ** (e / 4) for e in range(-20, 1))  # 1e-5 … 1
LARGEST = 1e9
MODEL = ("model", "version")
GRAPH = (*MODEL, "graph")
OIP = "vae_oip_"  # not for Prometheus: a series for each number of rows

Run = Callable[..., tuple[NDArray[Any], ...]]
Keep = Callable[[float], None]


class _Kept:
    """What was observed since the last `flush`, from any thread.

    In a list: writing each value to a file that several processes share takes longer than measuring it.
    """

    def __init__(self) -> None:
        self.values: list[float] = []

    def take(self) -> list[float]:
        values = self.values[:]
        del self.values[: len(values)]  # and not what has come meanwhile
        return values


class _Histogram(Histogram):
    """A histogram that is given its values by `keep`, and counts them at `flush`."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._kept = _Kept()
        self.keep = self._kept.values.append
        self.keep_all = self._kept.values.extend

    def flush(self) -> None:
        children: list[Any] = list(self._metrics.values()) if self._labelnames else [self]
        for child in children:
            if values := child._kept.take():
                bounds = child._upper_bounds
                counts = np.bincount(np.searchsorted(bounds, values), minlength=len(bounds))
                for bucket in np.flatnonzero(counts):
                    child._buckets[bucket].inc(int(counts[bucket]))
                child._sum.inc(sum(values))


class _Counter(Counter):
    """A counter that is given its amounts by `keep`, and adds them at `flush`."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._kept = _Kept()
        self.keep = self._kept.values.append

    def flush(self) -> None:
        children: list[Any] = list(self._metrics.values())
        for child in children:
            if values := child._kept.take():
                child.inc(sum(values))


class GraphMetrics:
    """What one graph of one model did: the rows of its runs, and how long they waited and took."""

    def __init__(self, metrics: "Metrics", *labels: str) -> None:
        self._rows = metrics.rows.labels(*labels)
        self._batch = metrics.batch_rows.labels(*labels)
        self._seconds = metrics.model_seconds.labels(*labels)
        self._failures = metrics.failures.labels(*labels)
        self.waited: Callable[[float], None] = metrics.queue_seconds.labels(*labels).keep
        self.waiting: Callable[[float], None] = metrics.queue_rows.labels(*labels).set

    def counted(self, run: Run) -> Run:
        """`run`, whose every call is one run of the graph on the rows of its first argument."""

        def counted(*rows: NDArray[Any]) -> tuple[NDArray[Any], ...]:
            started = perf_counter()
            try:
                results = run(*rows)
            except Exception:
                self._failures.inc()
                raise
            self._seconds.keep(perf_counter() - started)
            self._batch.keep(len(rows[0]))
            self._rows.keep(len(rows[0]))
            return results

        return counted


class ModelMetrics:
    """What one model did, and whether what it is given still looks like what it was trained on."""

    def __init__(self, metrics: "Metrics", manifest: Manifest) -> None:
        labels = (manifest.name, str(manifest.version))
        self.encoder = GraphMetrics(metrics, *labels, "encoder")
        self.decoder = GraphMetrics(metrics, *labels, "decoder")
        self._kl = metrics.kl.labels(*labels)
        self._errors = metrics.errors.labels(*labels)

    def encoded(self, mean: NDArray[np.float32], logvar: NDArray[np.float32]) -> None:
        """Posteriors that came out of the encoder, float32 [n, *latent]."""
        with np.errstate(over="ignore", invalid="ignore"):  # a broken encoder shows in the last bucket
            terms = np.square(mean) + np.exp(logvar) - logvar - 1
        kl = 0.5 * terms.reshape(len(mean), -1).sum(axis=1, dtype=np.float64)
        self._kl.keep_all(np.fmin(kl, LARGEST).tolist())  # one NaN or infinity would be in the sum for ever

    def reconstructed(self, errors: NDArray[np.floating]) -> None:
        """Mean squared errors on [0, 1], one of each image."""
        self._errors.keep_all(errors.tolist())


class Metrics:
    """The metrics of one application."""

    def __init__(self) -> None:
        # Else there is a second series for each, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._requests = _Counter(
            "vae_requests_total", "Answers", ("route", "method", "status"), registry=registry
        )
        self._request_seconds = _Histogram(
            "vae_request_seconds",
            "From a request's head to the head of its answer",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self._rejections = Counter(
            "vae_rejections_total", "Requests answered with a problem", ("reason",), registry=registry
        )
        codec = _Histogram(
            "vae_codec_seconds",
            "A body into an array (decode), an array into a body (encode)",
            ("direction",),
            buckets=SECONDS,
            registry=registry,
        )
        self._codec = {"read": codec.labels("decode").keep, "write": codec.labels("encode").keep}
        self.rows = _Counter("vae_rows_total", "Rows that went through a graph", GRAPH, registry=registry)
        self.batch_rows = _Histogram(
            "vae_batch_rows", "Rows in one run of a graph", GRAPH, buckets=ROWS, registry=registry
        )
        self.queue_rows = Gauge(
            "vae_queue_rows", "Rows that wait", GRAPH, registry=registry, multiprocess_mode="livesum"
        )
        self.queue_seconds = _Histogram(
            "vae_queue_seconds", "How long requests waited", GRAPH, buckets=SECONDS, registry=registry
        )
        self.model_seconds = _Histogram(
            "vae_model_seconds", "One run of a graph", GRAPH, buckets=SECONDS, registry=registry
        )
        self.failures = Counter(
            "vae_failures_total",
            "Runs of a graph that failed, with every request in them",
            GRAPH,
            registry=registry,
        )
        self.kl = _Histogram(
            "vae_kl_nats", "KL(q(z|x) || N(0, I)) of an image", MODEL, buckets=NATS, registry=registry
        )
        self.errors = _Histogram(
            "vae_reconstruction_error",
            "Mean squared error of an image on [0, 1]",
            MODEL,
            buckets=ERRORS,
            registry=registry,
        )
        self._memory = Gauge(
            "process_resident_memory_bytes",
            "Resident memory of all workers",
            registry=registry,
            multiprocess_mode="livesum",
        )
        # What the Open Inference Protocol tells as its own statistics (service/core/statistics.py), exactly.
        function = (*MODEL, "name")
        self.oip = _Counter("vae_oip_requests_total", "Steps", (*function, "step"), registry=registry)
        self.oip_ns = _Counter(
            "vae_oip_nanoseconds_total", "Of steps", (*function, "step"), registry=registry
        )
        self.oip_last = Gauge(
            "vae_oip_last_inference_milliseconds",
            "Since 1970",
            function,
            registry=registry,
            multiprocess_mode="max",
        )
        self.runs = _Counter("vae_oip_runs_total", "Runs by rows", (*function, "rows"), registry=registry)
        self.run_ns = _Counter(
            "vae_oip_run_nanoseconds_total", "Of runs", (*function, "rows"), registry=registry
        )
        # labels() takes a microsecond, this a tenth; as many as there are routes, methods and statuses.
        self._answers: dict[tuple[str, str, int], tuple[Keep, Keep]] = {}
        self._flushed = (
            self._requests,
            self._request_seconds,
            codec,
            self.rows,
            self.batch_rows,
            self.queue_seconds,
            self.model_seconds,
            self.kl,
            self.errors,
            self.oip,
            self.oip_ns,
            self.runs,
            self.run_ns,
        )

    def answered(
        self, route: str | None, method: str, status: int, seconds: Mapping[str, float], problem: str | None
    ) -> None:
        """One request: the seconds of its steps, and the slug of the problem it was answered with, if any."""
        route = route or OTHER
        key = (route, method if method in METHODS else OTHER, status)
        if (found := self._answers.get(key)) is None:
            found = (self._requests.labels(*map(str, key)).keep, self._request_seconds.labels(route).keep)
            self._answers[key] = found
        found[0](1)
        if "total" in seconds:
            found[1](seconds["total"])
        for step, keep in self._codec.items():
            if step in seconds:
                keep(seconds[step])
        if problem:
            self._rejections.labels(problem).inc()

    def refresh(self) -> None:
        """Count what was kept, and measure what is no event: memory."""
        for metric in self._flushed:
            metric.flush()
        if (resident := resident_bytes()) is not None:
            self._memory.set(resident)

    def text(
        self, accept: str, loaded: Iterable[tuple[Manifest, bool]], refused: Iterable[str]
    ) -> tuple[bytes, str]:
        """The answer and its media type. `loaded`: manifests, and whether each is the default; `refused`: the
        folders of bundles that did not hold what they promise.
        """
        public = (metric for metric in self._collect() if not metric.name.startswith(OIP))
        metrics = [*public, *_models(loaded, refused)]
        encode, media_type = choose_encoder(accept)
        registry = CollectorRegistry()
        registry.register(_Given(metrics))
        return encode(registry), media_type

    def oip_counts(self) -> dict[tuple[str, ...], int]:
        """What only the Open Inference Protocol tells: by the name of a sample and its labels, in order."""
        labels = (*MODEL, "name", "step", "rows")
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
        together: Iterable[Metric] = MultiProcessCollector(None, folder).collect()  # type: ignore[no-untyped-call]
        return together


class _Given:
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def _models(loaded: Iterable[tuple[Manifest, bool]], refused: Iterable[str]) -> Iterator[Metric]:
    info = GaugeMetricFamily("vae_model_info", "A loaded version", labels=(*MODEL, "default"))
    golden = GaugeMetricFamily(
        "vae_golden_check", "1: digests, graphs and golden vectors hold; 0: refused", labels=MODEL
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
    """Memory of a process, where the system says it as Linux does."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
