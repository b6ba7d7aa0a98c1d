"""The state of one process: its settings, its models, and the threads that they run in."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from service.core.admission import Admission
from service.core.batcher import ModelThread
from service.core.loader import Loader
from service.core.metrics import Metrics
from service.core.models import Model, Models
from service.core.pool import SMALL_VALUES, Pool
from service.core.problems import Draining, NotReady, TooLarge
from service.core.statistics import Counts
from service.settings import Settings
from vaeserve.bundle.files import BundleError
from vaeserve.bundle.images import TooManyPixels
from vaeserve.bundle.manifest import Manifest

log = logging.getLogger(__name__)

# Image files of fewer pixels, as their headers declare, are decoded on the event loop; see SMALL_VALUES.
SMALL_PIXELS = 1 << 18

T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """What the body of one request may hold. `all_pixels` limits all of its image files together."""

    images: int
    pixels: int
    all_pixels: int


class Service:
    """The models of one process and everything that they need to answer requests.

    `warm_up` is called once, with the manifest of the first model, before there are models.
    """

    def __init__(
        self, settings: Settings, *, warm_up: Callable[[Manifest], None] = lambda manifest: None
    ) -> None:
        self.settings = settings
        self.failure: str | None = None  # why there will be no models
        self.draining = False  # still serving, but about to stop
        self.metrics = Metrics()
        self.admission = Admission(
            max_rows=settings.queue_rows,
            max_bytes=settings.queue_bytes,
            max_body=settings.max_body,
            read_timeout=settings.read_timeout,
            timeout=settings.timeout,
        )
        small = min(SMALL_PIXELS, settings.max_pixels)
        self._small = Budget(settings.max_images, small, small)
        self._budget = Budget(settings.max_images, settings.max_pixels, 4 * settings.max_pixels)
        self._models: Models | None = None
        self._measured: list[Model] = []
        self._complaint: str | None = None  # why the repository could not be read the last time
        # One thread computes for all models: several would only compete for the CPU.
        self._thread = ModelThread()
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._pool = Pool()
        self.run = self._pool.run
        self._loader = Loader(settings, self._thread, self._pool, self.metrics)
        self._warm_up = warm_up

    @property
    def models(self) -> Models:
        """The loaded models; NotReady if there are none (yet)."""
        if self._models is None:
            raise NotReady(self.failure or "The models are being loaded; try again in a moment.")
        return self._models

    async def load(self) -> None:
        """Take up what is in the repository now. Loaded models keep serving meanwhile, and if it fails.

        Afterwards there are models, or `failure` says why there are none.
        """
        try:
            loop = asyncio.get_running_loop()
            self._models = await loop.run_in_executor(self._loading, self._load)
            self.failure = None
        except BundleError as error:
            self.failure = self._failed(str(error))
        except Exception as error:
            log.exception("the models could not be loaded")
            self.failure = self._failed(f"the models could not be loaded: {error}")

    def _load(self) -> Models:
        models = self._loader.load()
        if self._models is None:
            self._warm_up(models.newest()[0].manifest)
        return models

    def _failed(self, reason: str) -> str | None:
        """The reason if no model is loaded. Otherwise None, and each new reason is logged as a warning."""
        if self._models is None:
            return reason
        if reason != self._complaint:
            log.warning("the loaded models keep serving: %s", reason)
        self._complaint = reason
        return None

    async def watch(self) -> None:
        """Look for new versions every `poll` seconds until cancelled; never if that is 0."""
        while self.settings.poll:
            await asyncio.sleep(self.settings.poll)
            await self.load()

    def check_alive(self) -> None:
        """NotReady if the model thread has been running one batch for so long that it will not return."""
        if (seconds := self._thread.busy_for()) > self.settings.stuck_after:
            raise NotReady(f"One batch has been running for {seconds:.0f} s; restart this process.")

    def check_ready(self) -> None:
        """A problem unless the process can serve: Draining while it is stopping, NotReady without models."""
        if self.draining:
            raise Draining("The service is stopping; send requests to another replica.")
        self.check_alive()
        _ = self.models

    def drain(self) -> None:
        """Deny readiness from now on, so that load balancers choose another replica."""
        self.draining = True

    async def keep_measuring(self) -> None:
        """Measure five times a second: another worker may be asked, and buffers must not grow."""
        while True:
            self.measure()
            await asyncio.sleep(0.2)

    def measure(self) -> None:
        """Bring the metrics up to date with what is buffered, the memory in use, and the models' queues."""
        self.metrics.refresh()
        loaded = self._models.all() if self._models else []
        for model in {id(each): each for each in [*self._measured, *loaded]}.values():
            model.measure()
        self._measured = loaded  # an unloaded model is measured once more, when its queues are empty

    async def metrics_text(self, accept: str) -> tuple[bytes, str]:
        """The body of /metrics and its media type."""
        self.measure()
        models = self._models or Models({}, {}, None)
        default = models.default_model()
        loaded = [(model.manifest, model is default) for model in models.all()]
        text = partial(self.metrics.text, accept, loaded, list(models.refused))
        return await asyncio.get_running_loop().run_in_executor(self._pool, text)

    async def oip_counts(self) -> Counts:
        """What all workers have counted for the statistics of the Open Inference Protocol."""
        self.measure()
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.metrics.oip_counts)

    async def read(self, values: int, function: Callable[[Budget], T]) -> T:
        """Like `run`, for bodies that may hold image files, whose size shows only once they are read."""
        if values <= SMALL_VALUES:
            try:
                return function(self._small)
            except TooManyPixels:
                pass  # too many for the event loop; the pool decides whether too many for the service
        try:
            return await self.run(SMALL_VALUES + 1, lambda: function(self._budget))
        except TooManyPixels as error:
            raise TooLarge(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None

    def close(self) -> None:
        """Stop the threads; call once no request is left."""
        self.measure()  # whatever was buffered since the last time would be lost
        for executor in (self._thread, self._loading, self._pool):
            executor.shutdown(cancel_futures=True)
