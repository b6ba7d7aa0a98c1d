"""What one process serves: the models that are loaded, their batchers, and the threads that they run in."""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from service import codecs, telemetry
from service.admission import Admission, admit
from service.batcher import Batcher, Run
from service.codecs import Budget
from service.metrics import GraphMetrics, Metrics, ModelMetrics, shared
from service.problems import NotReady, TooLarge, UnknownModel, WrongModel
from service.runtime.bundle import BundleError, Manifest
from service.runtime.calibration import Calibration
from service.runtime.cpus import usable_cpus
from service.runtime.engine import ByteImages, Engine, Floats, Posterior
from service.runtime.images import TooManyPixels
from service.runtime.latent_map import LatentMap
from service.runtime.prior import Prior
from service.runtime.repository import Repository
from service.settings import Settings
from service.statistics import Executions

log = logging.getLogger(__name__)

# The model of the shipped repository that a first request is most likely to want.
USUAL_DEFAULT = "mnist"

# What is done on the event loop itself, because it takes less than a millisecond or two: more would
# make everybody wait, and for less the way to another thread and back costs more than the work.
SMALL_VALUES = 1 << 14  # numbers to parse or to print
SMALL_PIXELS = 1 << 18  # of an image file, as its header declares

T = TypeVar("T")


@dataclass(frozen=True)
class ServedModel:
    """One version of a model: numpy in, numpy out, the rows of all requests joined into batches."""

    manifest: Manifest
    prior: Prior
    calibration: Calibration | None
    map: LatentMap | None
    encoder: Batcher
    decoder: Batcher
    means: Batcher  # the decoder's other output
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


def _serve(engine: Engine, thread: Executor, max_batch: int, metrics: ModelMetrics) -> ServedModel:
    def batcher(run: Run, graph: GraphMetrics) -> Batcher:
        def observe(waited: float, ran: float) -> None:
            telemetry.add("queue", waited)
            telemetry.add("model", ran)
            graph.waited(waited)

        return Batcher(graph.counted(run), thread, max_rows=max_batch, observe=observe)

    def encode(images: ByteImages) -> Posterior:
        posterior = engine.encode(images)
        metrics.encoded(*posterior)
        return posterior

    executions = {"encoder": Executions(), "decoder": Executions()}
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
            raise UnknownModel(f"There is no model {name!r} here; there are {self._names()}.")
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


def load(settings: Settings, thread: Executor, metrics: Metrics) -> ServedModels:
    """Open the repository of the settings; BundleError when nothing in it can be served.

    Takes seconds: not for the event loop.
    """
    repository = Repository(settings.models, threads=settings.model_threads())
    repository.load()
    if repository.engines or len(repository.refused) > 1:
        for reason in repository.refused.values():
            log.warning("refused: %s", reason)
    if not repository.engines:
        raise BundleError(_nothing(repository))
    loaded = {
        name: {
            version: _serve(engine, thread, settings.max_batch, ModelMetrics(metrics, engine.manifest))
            for version, engine in versions.items()
        }
        for name, versions in repository.engines.items()
    }
    models = ServedModels(loaded, repository.refused, _default(settings.default_model, loaded))
    codecs.warm_up(models.newest()[0].manifest)
    return models


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
        self._models: ServedModels | None = None
        # One thread computes for all models: more would only take the CPU from one another.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._pool = ThreadPoolExecutor(min(4, usable_cpus()), thread_name_prefix="codec")

    @property
    def models(self) -> ServedModels:
        """The models, or the problem that there are none (yet)."""
        if self._models is None:
            raise NotReady(self.failure or "The models are being loaded; try again in a moment.")
        return self._models

    async def load(self) -> None:
        """Load the models without holding up the event loop; afterwards there are models or `failure`."""
        try:
            loop = asyncio.get_running_loop()
            self._models = await loop.run_in_executor(
                self._thread, load, self.settings, self._thread, self.metrics
            )
        except BundleError as error:
            self.failure = str(error)
        except Exception as error:
            self.failure = f"the models could not be loaded: {error}"
            log.exception("the models could not be loaded")

    def drain(self) -> None:
        """Deny readiness from now on, so that balancers look for another replica."""
        self.draining = True

    async def keep_measuring(self) -> None:
        """Where another worker may be asked for the metrics of this one, the gauges have to be up to date."""
        while shared():
            self.measure()
            await asyncio.sleep(1)

    def measure(self) -> None:
        """Put into the metrics what is no event: memory, and who waits for the models."""
        self.metrics.refresh()
        for model in self._models.all() if self._models else ():
            model.metrics.encoder.waiting(model.encoder.waiting_rows)
            model.metrics.decoder.waiting(model.decoder.waiting_rows + model.means.waiting_rows)

    async def metrics_text(self, accept: str) -> tuple[bytes, str]:
        """What /metrics answers, and its media type."""
        self.measure()
        models = self._models or ServedModels({}, {}, None)
        loaded = [(model.manifest, model is models.usual()) for model in models.all()]
        text = partial(self.metrics.text, accept, loaded, list(models.refused))
        return await asyncio.get_running_loop().run_in_executor(self._pool, text)

    async def run(self, values: int, function: Callable[[], T]) -> T:
        """Call `function` here, or in the codec pool when it has many values to work on."""
        if values <= SMALL_VALUES:
            return function()
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def read(self, values: int, function: Callable[[Budget], T]) -> T:
        """Like `run`, for what may hold image files: how large those are shows only inside."""
        if values <= SMALL_VALUES:
            pixels = min(SMALL_PIXELS, self.budget.pixels)
            try:
                return function(Budget(self.budget.images, pixels, pixels))
            except TooManyPixels:
                pass  # too many for the event loop; the pool decides whether for the service
        try:
            return await self.run(SMALL_VALUES + 1, lambda: function(self.budget))
        except TooManyPixels as error:
            raise TooLarge(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)
