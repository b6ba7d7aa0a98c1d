"""What one process serves: the models that are loaded, their batchers, and the threads that they run in."""

import asyncio
import contextlib
import ctypes
import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from service.core import trace as telemetry
from service.core.admission import Admission, admit
from service.core.batcher import Batcher, ModelThread, Run
from service.core.metrics import GraphMetrics, Metrics, ModelMetrics
from service.core.problems import NotReady, TooLarge, UnknownModel, WrongModel
from service.core.statistics import Counts, Executions
from service.http import codecs
from service.http.codecs import Budget
from service.settings import Settings
from vaeserve.bundle.arrays import ByteImages, Floats
from vaeserve.bundle.calibration import Calibration
from vaeserve.bundle.cpus import usable_cpus
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import BundleError
from vaeserve.bundle.images import TooManyPixels
from vaeserve.bundle.latent_map import LatentMap
from vaeserve.bundle.manifest import Manifest
from vaeserve.bundle.posterior import Posterior
from vaeserve.bundle.prior import Prior, PriorKind
from vaeserve.bundle.repository import Repository

log = logging.getLogger(__name__)

# The model of the shipped repository that a first request is most likely to want.
USUAL_DEFAULT = "mnist"

# What is done on the event loop itself, because it takes less than a millisecond or two: more would
# make everybody wait, and for less the way to another thread and back costs more than the work.
SMALL_VALUES = 1 << 14  # numbers to parse or to print
SMALL_PIXELS = 1 << 18  # of an image file, as its header declares
SHORT_BATCH = 0.008  # seconds, of a batch: its requests have been read one after the other for as long

T = TypeVar("T")


@dataclass(frozen=True)
class ServedModel:
    """One version of a model: numpy in, numpy out, the rows of all requests joined into batches."""

    manifest: Manifest
    prior: Prior | None
    calibration: Calibration | None
    map: LatentMap | None
    encoder: Batcher
    decoder: Batcher
    means: Batcher  # the decoder's other output
    flow: Batcher | None  # of the prior, noise to latents
    metrics: ModelMetrics
    executions: Mapping[str, Executions]  # what the graphs ran, by `encoder` and `decoder`

    async def encode(self, images: ByteImages) -> Posterior:
        """uint8 [n, h, w, c] → mean and logvar, float32 [n, *latent]."""
        admit(len(images))
        return Posterior(*await self.encoder(images))

    async def decode(self, latents: Floats) -> ByteImages:
        """float32 [n, *latent] → uint8 [n, h, w, c]."""
        admit(len(latents))
        (images,) = await self.decoder(latents)
        return images

    async def pixels(self, latents: Floats) -> Floats:
        """float32 [n, *latent] → the likelihood's mean, float32 [n, h, w, c] in [0, 1]."""
        admit(len(latents))
        (pixels,) = await self.means(latents)
        return pixels

    async def transform(self, noise: Floats, kind: PriorKind) -> Floats:
        """The output of `Prior.sample(transform=False)` for this kind → latents, float32 [n, *latent]."""
        if self.flow is None or kind != "flow":
            return noise
        (latents,) = await self.flow(noise)
        return latents


def _serve(engine: Engine, thread: Executor, settings: Settings, all_metrics: Metrics) -> ServedModel:
    metrics = ModelMetrics(all_metrics, engine.manifest)
    # With no more CPUs than processes nothing runs beside the event loop: the model may as well run in it.
    crowded = settings.provider == "cpu" and settings.processes() >= usable_cpus()
    here = SHORT_BATCH if crowded else 0.0

    def batcher(run: Run, graph: GraphMetrics) -> Batcher:
        def observe(waited: float, ran: float) -> None:
            telemetry.add("queue", waited)
            telemetry.add("model", ran)
            graph.waited(waited)

        return Batcher(graph.counted(run), thread, max_rows=settings.max_batch, here=here, observe=observe)

    def encode(images: ByteImages) -> Posterior:
        posterior = engine.encode(images)
        metrics.encoded(*posterior)
        return posterior

    transform = engine.transform if engine.prior and engine.prior.flow else None
    labels = engine.manifest.name, str(engine.manifest.version)
    executions = {graph: Executions(all_metrics, *labels, graph) for graph in ("encoder", "decoder")}
    return ServedModel(
        engine.manifest,
        engine.prior,
        engine.calibration,
        engine.map,
        encoder=batcher(executions["encoder"].counted(encode), metrics.encoder),
        decoder=batcher(
            executions["decoder"].counted(lambda latents: (engine.decode(latents),)), metrics.decoder
        ),
        means=batcher(
            executions["decoder"].counted(lambda latents: (engine.pixels(latents),)), metrics.decoder
        ),
        flow=batcher(lambda noise: (transform(noise),), metrics.decoder) if transform else None,
        metrics=metrics,
        executions=executions,
    )


@dataclass(frozen=True)
class ServedModels:
    """`loaded[name][version]`; `refused[path]` is why a bundle is not among them."""

    loaded: dict[str, dict[int, ServedModel]]
    refused: dict[str, str]
    default: str | None  # the model of requests that name none

    def choose(self, *references: str | None) -> ServedModel:
        """The model that a request means, from all the places where it may say `name` or `name@version`."""
        name, version = _agreed([reference for reference in references if reference])
        name = name or self.default
        if name is None:
            raise UnknownModel(
                f"Several models are loaded; name one of {self._names()}, as in ?model=<name>."
            )
        versions = self.loaded.get(name)
        if not versions:
            why = "; ".join(self.refused_of(name).values())
            refused = f" What there is of {name} was refused: {why}." if why else ""
            raise UnknownModel(f"There is no model {name!r} here; there are {self._names()}.{refused}")
        if version is None:
            return versions[max(versions)]
        if version not in versions:
            there = ", ".join(f"{name}@{number}" for number in sorted(versions))
            raise WrongModel(
                f"{name}@{version} is not loaded; there is {there}. No other version stands in for it."
            )
        return versions[version]

    def versions(self, name: str) -> list[int]:
        return sorted(self.loaded[name])

    def refused_of(self, name: str) -> dict[str, str]:
        """Why versions of this model are not served, by their folder."""
        return {path: reason for path, reason in self.refused.items() if Path(path).parent.name == name}

    def newest(self) -> list[ServedModel]:
        return [versions[max(versions)] for _, versions in sorted(self.loaded.items())]

    def all(self) -> list[ServedModel]:
        return [model for versions in self.loaded.values() for model in versions.values()]

    def usual(self) -> ServedModel | None:
        """Whom a request gets that names no model."""
        versions = self.loaded.get(self.default or "")
        return versions[max(versions)] if versions else None

    def _names(self) -> str:
        return ", ".join(sorted(self.loaded))


class Loader:
    """Keeps `ServedModels` in step with the repository. Its `load` takes seconds: not for the event loop."""

    def __init__(self, settings: Settings, thread: Executor, metrics: Metrics) -> None:
        self._settings = settings
        self._thread = thread
        self._metrics = metrics
        self._repository = Repository(
            settings.models,
            threads=settings.model_threads(),
            keep=settings.kept_versions(),
            provider=settings.provider,
        )
        self._served: dict[Engine, ServedModel] = {}
        self._unloaded = False  # something, the last time

    def load(self) -> ServedModels:
        """Open what is new in the repository, check and warm it, and let go of what it replaces.

        What is open already stays as it is, with its batchers: requests do not notice. BundleError
        when there is nothing at all that can be served.
        """
        repository, refused = self._repository, self._repository.refused.copy()
        repository.load()
        for path, reason in repository.refused.items():
            # What is refused before there is anything to serve is told as the reason of that, if it is one.
            if refused.get(path) != reason and (repository.engines or len(repository.refused) > 1):
                log.warning("refused: %s", reason)
        if not repository.engines:
            raise BundleError(_nothing(repository))
        old, self._served = (
            self._served,
            {
                engine: self._served.get(engine) or self._serve(engine)
                for versions in repository.engines.values()
                for engine in versions.values()
            },
        )
        loaded = {
            name: {version: self._served[engine] for version, engine in versions.items()}
            for name, versions in repository.engines.items()
        }
        models = ServedModels(
            loaded, repository.refused.copy(), _default(self._settings.default_model, loaded)
        )
        if old:
            for engine in self._served.keys() - old.keys():
                log.info("loaded %s", engine.manifest.reference)
            gone = [engine.manifest.reference for engine in old.keys() - self._served.keys()]
            for reference in gone:
                log.info("unloaded %s, requests that have it finish with it", reference)
            old.clear()
            if gone or self._unloaded:  # also the time after, when those requests have finished
                _give_back_memory()
            self._unloaded = bool(gone)
        else:
            codecs.warm_up(models.newest()[0].manifest)
        return models

    def _serve(self, engine: Engine) -> ServedModel:
        return _serve(engine, self._thread, self._settings, self._metrics)


def _give_back_memory() -> None:
    """glibc would keep more than half of what the graphs that are gone have taken."""
    with contextlib.suppress(AttributeError, OSError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


def _nothing(repository: Repository) -> str:
    where = repository.path.resolve()
    if not repository.refused:
        return f"{where} holds no model; train one with `vae-train fit`, or name another folder with --models"
    first, *more = repository.refused.values()
    others = f" ({len(more)} more are refused, see the log)" if more else ""
    return f"no model can be served: {first}{others}"


def _default(wanted: str | None, loaded: dict[str, dict[int, ServedModel]]) -> str | None:
    if wanted and wanted not in loaded:
        raise BundleError(
            f"the default model {wanted!r} is not loaded; there are {', '.join(sorted(loaded))}"
        )
    if wanted or USUAL_DEFAULT in loaded:
        return wanted or USUAL_DEFAULT
    return next(iter(loaded)) if len(loaded) == 1 else None


def _agreed(references: list[str]) -> tuple[str | None, int | None]:
    """Name and version from the path, the query and the body, which must not contradict each other."""
    name: str | None = None
    version: int | None = None
    for reference in references:
        match = re.fullmatch(r"([^@]+)(?:@([1-9][0-9]{0,8}))?", reference)
        if not match:
            raise UnknownModel(f"{reference!r} is no model; write name or name@version, as in mnist@1.")
        its_name, its_version = match[1], int(match[2]) if match[2] else None
        if name not in (None, its_name) or (version and its_version and version != its_version):
            raise WrongModel(f"The request names {references[0]} and {reference}; name one model.")
        name, version = its_name, version or its_version
    return name, version


class Service:
    """The state of one process: settings, models once they are there, the model thread and the codec pool."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.failure: str | None = None  # why there will be no models
        self.draining = False  # serving, and soon no more
        self.metrics = Metrics()
        self.admission = Admission(
            max_rows=settings.queue_rows, max_bytes=settings.queue_bytes, timeout=settings.timeout
        )
        self.budget = Budget(settings.max_images, settings.max_pixels, 4 * settings.max_pixels)
        small = min(SMALL_PIXELS, settings.max_pixels)
        self._small = Budget(settings.max_images, small, small)
        self._models: ServedModels | None = None
        self._measured: list[ServedModel] = []
        self._complaint: str | None = None  # why the repository could not be read the last time
        # One thread computes for all models: more would only take the CPU from one another.
        self._thread = ModelThread()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._load = Loader(settings, self._thread, self.metrics).load
        self._pool = ThreadPoolExecutor(min(4, usable_cpus()), thread_name_prefix="codec")

    @property
    def models(self) -> ServedModels:
        """The models, or the problem that there are none (yet)."""
        if self._models is None:
            raise NotReady(self.failure or "The models are being loaded; try again in a moment.")
        return self._models

    async def load(self) -> None:
        """Take up what there is in the repository now; what is served goes on meanwhile, and when it fails.

        Afterwards there are models, or `failure` says why there are none.
        """
        try:
            loop = asyncio.get_running_loop()
            self._models = await loop.run_in_executor(self._loader, self._load)
            self.failure = None
        except BundleError as error:
            self.failure = self._failed(str(error))
        except Exception as error:
            log.exception("the models could not be loaded")
            self.failure = self._failed(f"the models could not be loaded: {error}")

    async def watch(self) -> None:
        """Look for new versions every `poll` seconds, until cancelled; not at all when that is 0."""
        while self.settings.poll:
            await asyncio.sleep(self.settings.poll)
            await self.load()

    def check_alive(self) -> None:
        """NotReady when the model thread has been at one batch for so long that it will not come back."""
        if (seconds := self._thread.busy_for()) > self.settings.stuck_after:
            raise NotReady(f"One batch has been running for {seconds:.0f} s; start this process anew.")

    def _failed(self, reason: str) -> str | None:
        """Why there are no models; said once in the log when those of before are still served."""
        if self._models is None:
            return reason
        if reason != self._complaint:
            log.warning("what is loaded goes on serving: %s", reason)
        self._complaint = reason
        return None

    def drain(self) -> None:
        """Deny readiness from now on, so that balancers look for another replica."""
        self.draining = True

    async def keep_measuring(self) -> None:
        """Another worker may be asked for the metrics of this one, and what is kept must not grow."""
        while True:
            self.measure()
            await asyncio.sleep(0.2)

    def measure(self) -> None:
        """Put into the metrics what is no event: memory, and who waits for the models."""
        self.metrics.refresh()
        served = self._models.all() if self._models else []
        for model in {id(each): each for each in [*self._measured, *served]}.values():
            model.metrics.encoder.waiting(model.encoder.waiting_rows)
            model.metrics.decoder.waiting(model.decoder.waiting_rows + model.means.waiting_rows)
        self._measured = served  # once more after they are unloaded, when nobody waits for them any longer

    async def metrics_text(self, accept: str) -> tuple[bytes, str]:
        """What /metrics answers, and its media type."""
        self.measure()
        models = self._models or ServedModels({}, {}, None)
        loaded = [(model.manifest, model is models.usual()) for model in models.all()]
        text = partial(self.metrics.text, accept, loaded, list(models.refused))
        return await asyncio.get_running_loop().run_in_executor(self._pool, text)

    async def oip_counts(self) -> Counts:
        """What all workers have counted for the statistics of the Open Inference Protocol."""
        self.measure()
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.metrics.oip_counts)

    async def run(self, values: int, function: Callable[[], T]) -> T:
        """Call `function` here, or in the codec pool when it has many values to work on."""
        if values <= SMALL_VALUES:
            return function()
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def read(self, values: int, function: Callable[[Budget], T]) -> T:
        """Like `run`, for what may hold image files: how large those are shows only inside."""
        if values <= SMALL_VALUES:
            try:
                return function(self._small)
            except TooManyPixels:
                pass  # too many for the event loop; the pool decides whether for the service
        try:
            return await self.run(SMALL_VALUES + 1, lambda: function(self.budget))
        except TooManyPixels as error:
            raise TooLarge(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None

    def close(self) -> None:
        self.measure()  # what was done since the last time would not be counted
        self._thread.shutdown(cancel_futures=True)
        self._loader.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)
