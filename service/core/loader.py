"""Keeps the models that are served in step with the repository."""

import contextlib
import ctypes
import logging
from concurrent.futures import Executor

from service.core.metrics import Metrics
from service.core.models import Model, Models
from service.core.pool import Pool
from service.settings import Settings
from vaeserve.bundle.cpus import usable_cpus
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import BundleError
from vaeserve.bundle.repository import Repository

log = logging.getLogger(__name__)

# The default among several models, unless --default-model names another.
DEFAULT_MODEL = "mnist"
# Batches shorter than this, in seconds, may run on the event loop: reading their requests takes as long.
INLINE_SECONDS = 0.008


class Loader:
    """Opens bundles and closes them. `load` takes seconds, so it must not run on the event loop."""

    def __init__(self, settings: Settings, thread: Executor, pool: Pool, metrics: Metrics) -> None:
        self._settings = settings
        self._thread = thread
        self._pool = pool
        self._metrics = metrics
        self._repository = Repository(
            settings.models,
            threads=settings.model_threads(),
            keep=settings.kept_versions(),
            provider=settings.provider,
        )
        self._models: dict[Engine, Model] = {}
        self._unloaded = False  # whether the last call unloaded anything

    def load(self) -> Models:
        """Opens, checks and warms what is new in the repository, and closes what it replaces.

        What is open already keeps its batchers: its requests notice nothing. BundleError if nothing can be
        served.
        """
        repository, refused = self._repository, self._repository.refused.copy()
        repository.load()
        for path, reason in repository.refused.items():
            # While nothing can be served, a single refusal is the message of the BundleError below.
            if refused.get(path) != reason and (repository.engines or len(repository.refused) > 1):
                log.warning("refused: %s", reason)
        if not repository.engines:
            raise BundleError(_nothing(repository))
        old, self._models = (
            self._models,
            {
                engine: self._models.get(engine) or self._model(engine)
                for versions in repository.engines.values()
                for engine in versions.values()
            },
        )
        loaded = {
            name: {version: self._models[engine] for version, engine in versions.items()}
            for name, versions in repository.engines.items()
        }
        models = Models(loaded, repository.refused.copy(), _default(self._settings.default_model, loaded))
        if old:
            for engine in self._models.keys() - old.keys():
                log.info("loaded %s", engine.manifest.reference)
            gone = [engine.manifest.reference for engine in old.keys() - self._models.keys()]
            for reference in gone:
                log.info("unloaded %s; requests that are using it will finish", reference)
            old.clear()
            if gone or self._unloaded:  # once more the next time, when those requests have finished
                _return_memory()
            self._unloaded = bool(gone)
        return models

    def _model(self, engine: Engine) -> Model:
        settings = self._settings
        # With no CPU to spare nothing runs beside the event loop, so the model may as well run on it.
        crowded = settings.provider == "cpu" and settings.processes() >= usable_cpus()
        return Model(
            engine,
            self._thread,
            self._pool,
            self._metrics,
            max_batch=settings.max_batch,
            inline_seconds=INLINE_SECONDS if crowded else 0.0,
        )


def _return_memory() -> None:
    """Returns freed memory to the system. glibc would keep more than half of what unloaded graphs took."""
    with contextlib.suppress(AttributeError, OSError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


def _nothing(repository: Repository) -> str:
    where = repository.path.resolve()
    if not repository.refused:
        return f"{where} holds no model; train one with `vae-train fit`, or name another folder with --models"
    first, *more = repository.refused.values()
    others = f" ({len(more)} more are refused, see the log)" if more else ""
    return f"no model can be served: {first}{others}"


def _default(configured: str | None, loaded: dict[str, dict[int, Model]]) -> str | None:
    """The name of the default model: the configured one, else DEFAULT_MODEL, else the only one."""
    if configured and configured not in loaded:
        raise BundleError(
            f"the default model {configured!r} is not loaded; there are {', '.join(sorted(loaded))}"
        )
    if configured or DEFAULT_MODEL in loaded:
        return configured or DEFAULT_MODEL
    return next(iter(loaded)) if len(loaded) == 1 else None
