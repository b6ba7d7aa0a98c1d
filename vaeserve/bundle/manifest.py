"""What a trained model is on disk: a folder with a manifest, two graphs and golden vectors.

`Manifest` is the one definition of the bundle format (format 1, see models/README.md). A bundle is
read with `read_bundle`, which checks every file against the manifest's digests, and written with
`publish`, which makes the next version appear in one step: a reader never sees half a bundle.
"""

import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from vaeserve.bundle.graph_check import GraphError, check_graph

FORMAT = 1
MANIFEST = "manifest.json"
REQUIRED = ("encoder.onnx", "decoder.onnx", "golden.npz")
DENSITY = "density.onnx"  # beside a flow: which way its latents came, and how likely they are
# A manifest is a few kilobytes; anything much larger is not one, and is not worth parsing.
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILE_BYTES = (2 << 30) - 1  # what protobuf can hold, so no graph is larger
# Compressed, a few kilobytes can stand for gigabytes.
MAX_ARRAY_BYTES = 256 << 20
# Values of one image and of its latents: a graph that is asked for more takes gigabytes for one batch.
MAX_VALUES = 1 << 24


class BundleError(ValueError):
    """A bundle that must not be served. The message is one sentence that says what to do."""


class _Record(BaseModel):
    # `extra="forbid"`: a field we do not know could change what the numbers mean.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageSpec(_Record):
    """The images that the encoder reads and the decoder writes: uint8 [n, height, width, channels]."""

    height: int = Field(ge=1, le=8192)
    width: int = Field(ge=1, le=8192)
    channels: Literal[1, 3]
    levels: int = Field(default=256, ge=2, le=256, description="distinct values a pixel had in the data")
    fit: Literal["cover", "contain", "stretch"] = "contain"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.height, self.width, self.channels

    @model_validator(mode="after")
    def _not_gigantic(self) -> "ImageSpec":
        if self.height * self.width * self.channels > MAX_VALUES:
            raise ValueError(f"an image may have {MAX_VALUES:,} values")
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
            raise ValueError(f"the latents of an image may be {MAX_VALUES:,} values")
        if self.kl is not None and len(self.kl) > self.size:
            raise ValueError(f"`kl` has {len(self.kl)} values for {self.size} dimensions")
        return self


class LikelihoodSpec(_Record):
    """p(x|z): its mean is the decoder's `pixels`; `scale` is on [0, 1], None for Bernoulli."""

    kind: Literal["bernoulli", "gaussian", "logistic"]
    scale: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _agrees(self) -> "LikelihoodSpec":
        if (self.kind == "bernoulli") != (self.scale is None):
            raise ValueError(f"a {self.kind} likelihood {'has no' if self.scale else 'needs a'} scale")
        return self


class PriorSpec(_Record):
    """p(z): N(0, I), or a density in `file` fitted to (gmm) or trained with (flow) the posterior.

    A flow is a graph, prior.onnx. Beside it may lie density.onnx, its other direction, and prior.npz, the
    mixture that other models have in its place.
    """

    kind: Literal["normal", "gmm", "flow"] = "normal"
    file: str | None = None


class Metric(_Record):
    """One published figure and what it takes to recompute it: images, seed, samples per image."""

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
    """How far another machine may be from the golden vectors (absolute)."""

    # The limits are what no honest export needs: above them the golden vectors would prove nothing.
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
    """Everything a server, a client or a reader must know about a trained model (format 1)."""

    format: Literal[1] = 1
    name: Name
    version: int = Field(ge=1)
    created: AwareDatetime
    image: ImageSpec
    latent: LatentSpec
    likelihood: LikelihoodSpec | None = None
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
        """`name@version`, the way a model is named in answers and logs."""
        return f"{self.name}@{self.version}"


class Golden(NamedTuple):
    """What torch gave for a few images at export; the engine must give the same.

    input uint8 [k,h,w,c]; mean, logvar float32 [k,*latent]; image uint8 and pixels float32
    [k,h,w,c], both decoded from `mean`. Where the prior is a flow: eps and z float32 [k,*latent], what the
    flow makes of eps; with density.onnx, log_density float32 [k] of z.
    """

    input: NDArray[np.uint8]
    mean: NDArray[np.float32]
    logvar: NDArray[np.float32]
    image: NDArray[np.uint8]
    pixels: NDArray[np.float32]
    eps: NDArray[np.float32] | None = None
    z: NDArray[np.float32] | None = None
    log_density: NDArray[np.float32] | None = None

    def save(self, path: Path) -> None:
        arrays = {name: array for name, array in self._asdict().items() if array is not None}
        np.savez_compressed(path, allow_pickle=False, **arrays)


@dataclass(frozen=True)
class Bundle:
    """A folder and its manifest. Files are read through `read`, which checks what it returns."""

    path: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """The bytes of one file of the bundle; BundleError unless they are what the manifest says."""
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(f"{self.path}: {name} is not in the manifest's list of files; publish it again")
        path = self.path / name
        data = _read_file(path, record.bytes)
        if len(data) != record.bytes:
            found = f"{len(data):,}" if len(data) < record.bytes else "more"
            raise BundleError(
                f"{path} has {found} bytes where the manifest says {record.bytes:,}; copy or publish it again"
            )
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise BundleError(
                f"{path} has another SHA-256 than the manifest says: it was changed after it was published; "
                "restore the file or publish a new version"
            )
        if path.suffix == ".onnx":
            try:
                check_graph(data)
            except GraphError as error:
                raise BundleError(f"{path}: {error}") from error
        return data

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of one .npz file of the bundle (never a pickle)."""
        data = io.BytesIO(self.read(name))
        try:
            with zipfile.ZipFile(data) as members:
                size = sum(member.file_size for member in members.infolist())
            if size > MAX_ARRAY_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes of the {MAX_ARRAY_BYTES:,} allowed")
            with np.load(data, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            for key, array in arrays.items():
                if not isinstance(array, np.ndarray):  # np.load hands over what is no array as bytes
                    raise ValueError(f"{key} is no array")
            return arrays
        except Exception as error:  # zipfile, zlib and numpy raise nearly anything, MemoryError among it
            raise BundleError(
                f"{self.path / name} is not a readable .npz ({error}); publish it again"
            ) from error

    def golden(self) -> Golden:
        """The golden vectors, shapes and types checked against the manifest."""
        arrays = self.arrays("golden.npz")
        image, latent = self.manifest.image, self.manifest.latent.shape
        pixels = (image.height, image.width, image.channels)
        rows = len(arrays["input"]) if "input" in arrays and arrays["input"].ndim else 0
        expected: dict[str, tuple[str, tuple[int, ...]]] = {
            "input": ("uint8", pixels),
            "mean": ("float32", latent),
            "logvar": ("float32", latent),
            "image": ("uint8", pixels),
            "pixels": ("float32", pixels),
        }
        if self.manifest.prior is not None and self.manifest.prior.kind == "flow":
            expected |= {"eps": ("float32", latent), "z": ("float32", latent)}
            if DENSITY in self.manifest.files:
                expected["log_density"] = ("float32", ())
        for key, (dtype, shape) in expected.items():
            array = arrays.get(key)
            if array is None or rows == 0 or array.dtype != dtype or array.shape != (rows, *shape):
                found = "is missing" if array is None else f"is {array.dtype} {list(array.shape)}"
                raise BundleError(
                    f"{self.path / 'golden.npz'}: {key} {found}, expected {dtype} "
                    f"[{', '.join(('k', *map(str, shape)))}]; export the model again"
                )
        # Pixels are k / (levels - 1) of 255, rounded: what lies between two levels was never in the data.
        steps = image.levels - 1
        level = arrays["input"] / 255 * steps
        if np.abs(level - np.rint(level)).max() > 0.5 * steps / 255 + 1e-6:
            raise BundleError(
                f"{self.path / 'golden.npz'}: input has other values than the {image.levels} levels of the "
                "manifest; publish the model again"
            )
        return Golden(**{key: arrays[key] for key in expected})


def read_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Read the bundle in folder `path`; with `verify`, every file against its size and SHA-256.

    Raises BundleError with one sentence that says what is wrong and what to do.
    """
    manifest = _read_manifest(path / MANIFEST)
    bundle = Bundle(path, manifest)
    optional = (manifest.prior.file if manifest.prior else None, manifest.calibration, manifest.map)
    for name in (*REQUIRED, *filter(None, optional)):
        if name not in manifest.files:
            raise BundleError(f"{path / MANIFEST}: {name} is missing from `files`; publish the model again")
    if verify:
        for name in manifest.files:
            bundle.read(name)
    return bundle


def _read_manifest(path: Path) -> Manifest:
    data = _read_file(path, MAX_MANIFEST_BYTES)
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} has more than {MAX_MANIFEST_BYTES} bytes; that is no manifest")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error}); copy or publish the bundle again") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} is not a JSON object; copy or publish the bundle again")
    number = content.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise BundleError(
            f"{path} has format {number}, made by a newer vaeserve: upgrade this one to read it"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise BundleError(
            f"{path}: {where}: {first['msg']}; correct it or publish the model again"
        ) from error


def _read_file(path: Path, most: int) -> bytes:
    """A plain file, and one byte more than `most` of it at most; never through a link, never from a pipe."""
    try:
        # Without O_NONBLOCK, to open a pipe would wait for somebody who writes into it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if path.is_symlink():
            raise BundleError(
                f"{path} is a symbolic link; a bundle holds its own files: copy the file in"
            ) from None
        missing = f"; a bundle is a folder with a {MANIFEST} in it" if path.name == MANIFEST else ""
        raise BundleError(
            f"{path} cannot be read ({error.strerror}){missing or '; copy the bundle again'}"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{path} is no plain file; a bundle is a flat folder of files")
    with os.fdopen(descriptor, "rb") as file:
        return file.read(most + 1)


@dataclass(frozen=True)
class Draft:
    """A bundle in the making: a folder of files and a manifest whose version and digests are not final."""

    folder: Path
    manifest: Manifest

    def bundle(self) -> Bundle:
        """The draft as a bundle of what lies in the folder now, so that an Engine can open it."""
        return Bundle(self.folder, self.manifest.model_copy(update={"files": _digests(self.folder)}))


def publish(repository: Path, name: str, draft: Draft) -> Path:
    """Publish the draft as the next version of `name`; returns the new folder `repository/name/<version>`.

    The files are copied beside their place, flushed to disk and renamed into it as one step, the
    manifest with the digests written last. Safe against a crash at any point, and against another
    publisher: whoever comes second gets the version after.
    """
    home = repository / name
    home.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".publishing-", dir=home))
    try:
        stage.chmod(0o755)  # mkdtemp's 0700 would hide the model from a service under another user
        for file in _files(draft.folder):
            shutil.copyfile(file, stage / file.name)
        record = draft.manifest.model_dump() | {
            "name": name,
            "created": datetime.now(UTC).replace(microsecond=0),
        }
        record["files"] = {key: value.model_dump() for key, value in _digests(stage).items()}
        while True:
            version = max(versions(home), default=0) + 1
            manifest = Manifest.model_validate(record | {"version": version})
            (stage / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
            for file in stage.iterdir():
                _flush(file)
            _flush(stage)
            try:
                os.replace(stage, home / str(version))
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    continue  # another publisher took this number
                raise
            _flush(home)
            return home / str(version)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def versions(home: Path) -> list[int]:
    """The version numbers that lie in the folder of one model, in ascending order."""
    if not home.is_dir():
        return []
    return sorted(int(entry.name) for entry in home.iterdir() if re.fullmatch(r"[1-9][0-9]{0,8}", entry.name))


def _files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.iterdir()):
        if file.name != MANIFEST:
            if not file.is_file() or file.is_symlink():
                raise BundleError(f"{file} is not a plain file; a bundle is a flat folder of files")
            yield file


def _digests(folder: Path) -> dict[str, FileRecord]:
    return {
        file.name: FileRecord(
            sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
            bytes=file.stat().st_size,
        )
        for file in _files(folder)
    }


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
