"""Bundles on disk: a folder with a manifest, two graphs and golden vectors.

`read_bundle` checks every file against the manifest's digests. `publish` makes the next version appear in
one step, so that a reader never sees half a bundle.
"""

import errno
import hashlib
import io
import json
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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from vaeserve.bundle.arrays import ByteImages, Floats
from vaeserve.bundle.atomic import move_into_place
from vaeserve.bundle.graph_check import GraphError, check_graph
from vaeserve.bundle.likelihood import LIKELIHOODS
from vaeserve.bundle.manifest import FORMAT, FileRecord, Manifest

MANIFEST = "manifest.json"
REQUIRED = ("encoder.onnx", "decoder.onnx", "golden.npz")
DENSITY = "density.onnx"  # beside a flow: its inverse, and the log density of latents
# A manifest is a few kilobytes. Anything much larger is something else, and is not parsed.
MAX_MANIFEST_BYTES = 4 << 20
# Compressed, a few kilobytes can stand for gigabytes.
MAX_ARRAY_BYTES = 256 << 20


class BundleError(ValueError):
    """A bundle that must not be served. The message says what is wrong and what to do."""


class Golden(NamedTuple):
    """The outputs of torch for a few images at export, which the engine must reproduce.

    input uint8 [k,h,w,c]; mean, logvar float32 [k,*latent]; image uint8 and pixels float32 [k,h,w,c], both
    decoded from `mean`. With a flow prior: eps and z float32 [k,*latent], noise and the flow's output for it;
    with density.onnx: log_density float32 [k] of z.
    """

    input: ByteImages
    mean: Floats
    logvar: Floats
    image: ByteImages
    pixels: Floats
    eps: Floats | None = None
    z: Floats | None = None
    log_density: Floats | None = None

    def save(self, path: Path) -> None:
        """Write golden.npz."""
        arrays = {name: array for name, array in self._asdict().items() if array is not None}
        np.savez_compressed(path, allow_pickle=False, **arrays)


@dataclass(frozen=True)
class Bundle:
    """A folder and its manifest. `read` checks every file against the manifest."""

    path: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """The bytes of one file; BundleError if size, digest or graph are not as they should be."""
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
                f"{path} does not match the SHA-256 in the manifest: it was changed after it was published; "
                "restore the file or publish a new version"
            )
        if path.suffix == ".onnx":
            try:
                check_graph(data)
            except GraphError as error:
                raise BundleError(f"{path}: {error}") from error
        return data

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of one .npz file (never a pickle)."""
        data = io.BytesIO(self.read(name))
        try:
            with zipfile.ZipFile(data) as members:
                size = sum(member.file_size for member in members.infolist())
            if size > MAX_ARRAY_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes, {MAX_ARRAY_BYTES:,} are allowed")
            with np.load(data, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            for key, array in arrays.items():
                if not isinstance(array, np.ndarray):  # np.load returns other members as bytes
                    raise ValueError(f"{key} is not an array")
            return arrays
        except Exception as error:  # zipfile, zlib and numpy raise nearly anything, even MemoryError
            raise BundleError(
                f"{self.path / name} is not a readable .npz ({error}); publish it again"
            ) from error

    def golden(self) -> Golden:
        """The golden vectors; BundleError unless their shapes and types agree with the manifest."""
        arrays = self.arrays("golden.npz")
        image, latent = self.manifest.image, self.manifest.latent.shape
        rows = len(arrays["input"]) if "input" in arrays and arrays["input"].ndim else 0
        expected: dict[str, tuple[str, tuple[int, ...]]] = {
            "input": ("uint8", image.shape),
            "mean": ("float32", latent),
            "logvar": ("float32", latent),
            "image": ("uint8", image.shape),
            "pixels": ("float32", image.shape),
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
        # Pixels are k / (levels - 1) of 255, rounded. A value between two levels was never in the data.
        steps = image.levels - 1
        level = arrays["input"] / 255 * steps
        if np.abs(level - np.rint(level)).max() > 0.5 * steps / 255 + 1e-6:
            raise BundleError(
                f"{self.path / 'golden.npz'}: input has values that are not among the {image.levels} "
                "levels of the manifest; publish the model again"
            )
        return Golden(**{key: arrays[key] for key in expected})


def read_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Read the bundle in folder `path`; BundleError if it must not be used.

    With `verify`, every file is read and checked against its size and SHA-256.
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
        raise BundleError(
            f"{path} has more than {MAX_MANIFEST_BYTES:,} bytes, too many for a manifest; "
            "copy or publish the bundle again"
        )
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error}); copy or publish the bundle again") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} is not a JSON object; copy or publish the bundle again")
    number = content.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise BundleError(
            f"{path} has format {number}, made by a newer vaeserve: upgrade vaeserve to read it"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        # pydantic names the member of the union that it tried, which is not a field of the file.
        where = ".".join(str(part) for part in first["loc"] if part not in LIKELIHOODS) or "the whole"
        raise BundleError(
            f"{path}: {where}: {first['msg']}; correct it or publish the model again"
        ) from error


def _read_file(path: Path, most: int) -> bytes:
    """Up to `most` + 1 bytes of a regular file; BundleError for a link or a pipe."""
    try:
        # Without O_NONBLOCK, opening a pipe would block until another process writes to it.
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
        raise BundleError(f"{path} is not a plain file; a bundle is a flat folder of files")
    with os.fdopen(descriptor, "rb") as file:
        return file.read(most + 1)


@dataclass(frozen=True)
class Draft:
    """An unpublished bundle: a folder of files, and a manifest without its final version and digests."""

    folder: Path
    manifest: Manifest

    def bundle(self) -> Bundle:
        """A bundle of the files that are in the folder now, which an Engine can open."""
        return Bundle(self.folder, self.manifest.model_copy(update={"files": _digests(self.folder)}))


def publish(repository: Path, name: str, draft: Draft) -> Path:
    """Publish the draft as the next version of `name`; returns the new folder `repository/name/<version>`.

    The files are copied to a hidden folder next to it, the manifest with the digests is written last, and
    one rename makes the version visible. This is safe against a crash at any point, and against another
    publisher: the second one gets the next version.
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
            "files": {key: value.model_dump() for key, value in _digests(stage).items()},
        }
        while True:
            version = max(versions(home), default=0) + 1
            manifest = Manifest.model_validate(record | {"version": version})
            (stage / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
            try:
                move_into_place(stage, home / str(version))
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    continue  # another publisher took this number
                raise
            return home / str(version)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def versions(home: Path) -> list[int]:
    """The version numbers in the folder of one model, in ascending order."""
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
        file.name: FileRecord(sha256=hashlib.sha256(file.read_bytes()).hexdigest(), bytes=file.stat().st_size)
        for file in _files(folder)
    }
