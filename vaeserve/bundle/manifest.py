"""The manifest of a bundle: every record of manifest.json (format 1, see models/README.md)."""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from vaeserve.bundle.likelihood import Likelihood

FORMAT = 1
MAX_FILE_BYTES = (2 << 30) - 1  # what protobuf can hold, so no graph is larger
# Values of one image and of its latents: a larger graph takes gigabytes for one batch.
MAX_VALUES = 1 << 24

Fit = Literal["cover", "contain", "stretch"]


class _Record(BaseModel):
    # `extra="forbid"`: an unknown field could change what the numbers mean.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageSpec(_Record):
    """The images that the encoder reads and the decoder writes: uint8 [n, height, width, channels]."""

    height: int = Field(ge=1, le=8192)
    width: int = Field(ge=1, le=8192)
    channels: Literal[1, 3]
    levels: int = Field(default=256, ge=2, le=256, description="distinct values a pixel had in the data")
    fit: Fit = "contain"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one image."""
        return self.height, self.width, self.channels

    @model_validator(mode="after")
    def _not_gigantic(self) -> "ImageSpec":
        if math.prod(self.shape) > MAX_VALUES:
            raise ValueError(f"an image may have {MAX_VALUES:,} values at most")
        return self


class LatentSpec(_Record):
    """Latents are float32 [n, *shape]."""

    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1, max_length=8)
    kl: tuple[float, ...] | None = Field(default=None, description="mean KL to N(0, I) per dimension, nats")

    @property
    def size(self) -> int:
        """The number of latent dimensions of one image."""
        return math.prod(self.shape)

    @model_validator(mode="after")
    def _agrees(self) -> "LatentSpec":
        if self.size > MAX_VALUES:
            raise ValueError(f"the latents of an image may have {MAX_VALUES:,} values at most")
        if self.kl is not None and len(self.kl) > self.size:
            raise ValueError(f"`kl` has {len(self.kl)} values for {self.size} dimensions")
        return self


class PriorSpec(_Record):
    """p(z): N(0, I), a Gaussian mixture fitted to the posterior (gmm), or a flow trained with the model.

    `file` is prior.npz for a mixture and prior.onnx, a graph, for a flow. A flow may come with density.onnx,
    its inverse, and with prior.npz, a mixture that can be sampled from as well.
    """

    kind: Literal["normal", "gmm", "flow"] = "normal"
    file: str | None = None


class Metric(_Record):
    """One published figure, and how to recompute it: images, seed, samples per image."""

    value: float
    n: int = Field(ge=1)
    seed: int | None = None
    k: int | None = Field(default=None, ge=1)
    se: float | None = Field(default=None, ge=0, description="standard error of the value")


class DataRecord(_Record):
    digest: str
    n: int = Field(ge=1)


class Training(_Record):
    config: dict[str, Any]
    data: DataRecord
    code: str


class Tolerance(_Record):
    """The largest absolute differences allowed from the golden vectors."""

    # Above these limits, which no correct export needs, the golden vectors would prove nothing.
    latent: float = Field(default=1e-3, gt=0, le=1)
    pixels: float = Field(default=1e-3, gt=0, le=0.1)
    levels: int = Field(default=1, ge=0, le=26, description="grey levels of the decoded uint8 image")


class FileRecord(_Record):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0, le=MAX_FILE_BYTES)


def _not_reserved(name: str) -> str:
    if name == "stats":  # /v2/models/stats is a route of the Open Inference Protocol
        raise ValueError("'stats' is reserved")
    return name


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$"), AfterValidator(_not_reserved)]


def _distinct(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(labels)) < len(labels):
        raise ValueError("two labels are the same")
    return labels


Label = Annotated[str, Field(min_length=1, max_length=256)]
# Plain names only: a manifest can never point outside its own folder.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class Manifest(_Record):
    """The content of manifest.json (format 1).

    `likelihood`, `latent.kl`, `labels`, `calibration` and `map` are null where they are unknown, as in
    imported models. A null `prior` means that there is nothing to sample from; an absent one means N(0, I).
    """

    format: Literal[1] = 1
    name: Name
    version: int = Field(ge=1)
    created: AwareDatetime
    image: ImageSpec
    latent: LatentSpec
    likelihood: Likelihood | None = None
    prior: PriorSpec | None = PriorSpec()
    labels: Annotated[tuple[Label, ...], AfterValidator(_distinct)] | None = None
    calibration: FileName | None = None
    map: FileName | None = None
    metrics: dict[str, Metric] = {}
    training: Training | None = None
    tolerance: Tolerance = Tolerance()
    files: dict[FileName, FileRecord] = {}
    libraries: dict[str, str] = {}

    @property
    def reference(self) -> str:
        """`name@version`, the name of the model in answers and logs."""
        return f"{self.name}@{self.version}"
