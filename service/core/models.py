"""Models at work: numpy in, numpy out, with the rows of all requests joined into batches."""

import re
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from service.core import trace
from service.core.admission import admit
from service.core.batcher import Batcher, Run
from service.core.metrics import GraphMetrics, Metrics, ModelMetrics
from service.core.pool import Pool
from service.core.problems import UnknownModel, WrongModel
from service.core.statistics import Executions
from vaeserve.bundle.arrays import ByteImages, Doubles, Floats
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.posterior import Posterior
from vaeserve.bundle.prior import NO_DENSITY, PriorKind


class Model:
    """One version of a model. Whatever runs a graph goes through a batcher of its own.

    `thread` runs the batches of all models, `max_batch` rows at most; batches that are expected to take less
    than `inline_seconds` run on the event loop instead. `pool` runs numpy work on many values.
    """

    def __init__(
        self,
        engine: Engine,
        thread: Executor,
        pool: Pool,
        metrics: Metrics,
        *,
        max_batch: int,
        inline_seconds: float = 0.0,
    ) -> None:
        self.manifest = engine.manifest
        self.prior = engine.prior
        self.calibration = engine.calibration
        self.map = engine.map
        # No closure below refers to `self`: the graphs must be freed when the last request has finished, not
        # when the garbage collector finds a cycle.
        self.metrics = observed = ModelMetrics(metrics, engine.manifest)
        self._pool = pool

        def batcher(run: Run, graph: GraphMetrics, executions: Executions | None = None) -> Batcher:
            def observe(waited: float, ran: float) -> None:
                trace.add("queue", waited)
                trace.add("model", ran)
                graph.waited(waited)

            counted = graph.counted(executions.counted(run) if executions else run)
            return Batcher(
                counted, thread, max_rows=max_batch, inline_seconds=inline_seconds, observe=observe
            )

        def encode(images: ByteImages) -> Posterior:
            posterior = engine.encode(images)
            observed.encoded(*posterior)
            return posterior

        labels = engine.manifest.name, str(engine.manifest.version)
        encoder, decoder = observed.encoder, observed.decoder
        encodings, decodings = (Executions(metrics, *labels, graph) for graph in ("encoder", "decoder"))
        self._encoder = batcher(encode, encoder, encodings)
        self._decoder = batcher(lambda latents: (engine.decode(latents),), decoder, decodings)
        self._pixels = batcher(lambda latents: (engine.pixels(latents),), decoder, decodings)
        self._flow = batcher(lambda noise: (engine.transform(noise),), decoder)
        self._density = batcher(lambda latents: (engine.log_density(latents),), decoder)

    async def encode(self, images: ByteImages) -> Posterior:
        """uint8 [n, h, w, c] → mean and logvar, float32 [n, *latent]."""
        admit(len(images))
        return Posterior(*await self._encoder(images))

    async def decode(self, latents: Floats) -> ByteImages:
        """float32 [n, *latent] → uint8 [n, h, w, c]."""
        admit(len(latents))
        (images,) = await self._decoder(latents)
        return images

    async def pixels(self, latents: Floats) -> Floats:
        """float32 [n, *latent] → the likelihood's mean, float32 [n, h, w, c] in [0, 1]."""
        admit(len(latents))
        (pixels,) = await self._pixels(latents)
        return pixels

    async def transform(self, noise: Floats, kind: PriorKind) -> Floats:
        """What `Prior.draw` returns for this kind → latents, float32 [n, *latent]. Only a flow computes."""
        if kind != "flow":
            return noise
        (latents,) = await self._flow(noise)
        return latents

    async def log_prior(self, latents: Floats) -> Doubles:
        """float32 [n, *latent] → log p(z) in nats under the prior that is sampled by default, float64 [n].

        WrongModel if the model has no prior, or a flow that was published without its density.
        """
        admit(len(latents))
        prior, reference = self.prior, self.manifest.reference
        if prior is None:
            raise WrongModel(f"{reference} has no scores: it has no prior; publish it again with one.")
        if not prior.has_density:
            raise WrongModel(f"{reference} has no scores: {NO_DENSITY}; publish it again with it.")
        if prior.flow is None:
            return await self._pool.run(latents.size, lambda: prior.log_density(latents))
        (density,) = await self._density(latents)
        return density

    def measure(self) -> None:
        """Puts the number of queued rows into the metrics."""
        self.metrics.encoder.waiting(self._encoder.waiting_rows)
        self.metrics.decoder.waiting(self._decoder.waiting_rows + self._pixels.waiting_rows)


@dataclass(frozen=True)
class Models:
    """The loaded models, `loaded[name][version]`, and in `refused[path]` why a bundle is not among them."""

    loaded: dict[str, dict[int, Model]]
    refused: dict[str, str]
    default: str | None  # name of the model for requests that name none

    def resolve(self, *references: str | None) -> Model:
        """The model that all places of a request together name, each `name`, `name@version` or nothing.

        UnknownModel if none of that name is loaded, WrongModel if the version is not or the places differ.
        """
        name, version = _agreed([reference for reference in references if reference])
        name = name or self.default
        if name is None:
            raise UnknownModel(
                f"Several models are loaded; name one of {self._names()}, as in ?model=<name>."
            )
        versions = self.loaded.get(name)
        if not versions:
            reasons = "; ".join(self.refused_of(name).values())
            refused = f" Its bundles were refused: {reasons}." if reasons else ""
            raise UnknownModel(f"There is no model {name!r} here; there are {self._names()}.{refused}")
        if version is None:
            return versions[max(versions)]
        if version not in versions:
            there = ", ".join(f"{name}@{number}" for number in sorted(versions))
            raise WrongModel(
                f"{name}@{version} is not loaded; there is {there}. Name one of these: latents of one "
                "version mean nothing to another."
            )
        return versions[version]

    def versions(self, name: str) -> list[int]:
        """The loaded versions of a model, ascending."""
        return sorted(self.loaded[name])

    def refused_of(self, name: str) -> dict[str, str]:
        """Why versions of this model were refused, by folder."""
        return {path: reason for path, reason in self.refused.items() if Path(path).parent.name == name}

    def newest(self) -> list[Model]:
        """The newest version of each model, by name."""
        return [versions[max(versions)] for _, versions in sorted(self.loaded.items())]

    def all(self) -> list[Model]:
        """Every version of every model."""
        return [model for versions in self.loaded.values() for model in versions.values()]

    def default_model(self) -> Model | None:
        """The model for requests that name none; None if they must name one."""
        versions = self.loaded.get(self.default or "")
        return versions[max(versions)] if versions else None

    def _names(self) -> str:
        return ", ".join(sorted(self.loaded))


def _agreed(references: list[str]) -> tuple[str | None, int | None]:
    """Name and version from the path, the query and the body, which must not contradict each other."""
    name: str | None = None
    version: int | None = None
    for reference in references:
        match = re.fullmatch(r"([^@]+)(?:@([1-9][0-9]{0,8}))?", reference)
        if not match:
            raise UnknownModel(
                f"{reference!r} does not name a model; write name or name@version, as in mnist@1."
            )
        its_name, its_version = match[1], int(match[2]) if match[2] else None
        if name not in (None, its_name) or (version and its_version and version != its_version):
            raise WrongModel(f"The request names {references[0]} and {reference}; name one model.")
        name, version = its_name, version or its_version
    return name, version
