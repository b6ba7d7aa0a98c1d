"""Reads images from .npz and .npy files in pieces, so a set may be larger than memory.

- `.npy`: the images, uint8 [n, h, w], [n, h, w, 1] or [n, h, w, 3]; or booleans; or floats in [0, 1].
- `.npz`, the arrays by name:
    `images`, and if there are labels `labels`;
    or `train_images`, `test_images` (and `val_images`), with `train_labels`, …, as in MedMNIST;
    or `x_train`, `x_test`, with `y_train`, `y_test`, as in Keras;
    or one array of any name: the images.
  Labels are integers or strings, [n] or [n, 1]; `label_names`, strings, name the integers 0, 1, ….
  A test part is kept as the test split. A validation part joins train; the content hash selects validation.
"""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from training.data.cache import stored
from training.data.images import PIECE, ByteImages, DataError, Images, ImageTarget, Say, from_arrays
from training.data.sources import guessed_size, model_name
from vaeserve.bundle.images import fit_array

# The parts' images, test last.
LAYOUTS = (("images",), ("train_images", "val_images", "test_images"), ("x_train", "x_val", "x_test"))


@dataclass(frozen=True)
class Part:
    """One array of images in a file: `member` is its name in a .npz, "" in a .npy."""

    path: Path
    member: str
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.path}: {self.member}" if self.member else str(self.path)

    def pieces(self) -> Iterator[ByteImages]:
        """uint8 [m, h, w, c] in order; raises DataError for values that are not grey levels."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        step = max(1, PIECE // row)
        with _opened(self.path, self.member) as (stream, _, _, _):
            for start in range(0, self.shape[0], step):
                rows = min(step, self.shape[0] - start)
                content = stream.read(rows * row)
                if len(content) < rows * row:
                    raise DataError(f"{self} ends after {start} of {self.shape[0]} images: write it again")
                yield _levels(np.frombuffer(content, self.dtype).reshape(rows, *self.shape[1:]), str(self))


def read_arrays(path: Path, target: ImageTarget, say: Say) -> Images:
    """The images of a .npy or .npz file, resized if asked or if a side is above 64. Raises DataError."""
    try:
        parts, labels, names = _npy(path) if path.suffix == ".npy" else _npz(path)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as a {path.suffix} file: {error}") from error
    if len({part.shape[1:] for part in parts}) > 1:
        raise DataError(f"{path}: {', '.join(f'{p.member} {list(p.shape)}' for p in parts)}: sizes differ")
    total, own = sum(part.shape[0] for part in parts), parts[0].shape[1:]
    height, width = target.image_size or guessed_size(np.array([own[:2]], np.int32))
    channels = target.channels or own[2]
    if (height, width, channels) != own:
        say(
            f"{path}: resized from {'×'.join(map(str, own))} to {height}×{width}×{channels} ({target.fit}); "
            "choose with --image-size, --channels, --fit"
        )

    def fill(out: ByteImages) -> dict[int, str]:
        row = 0
        for part in parts:
            for piece in part.pieces():
                if piece.shape[1:] == out.shape[1:]:
                    out[row : row + len(piece)] = piece
                else:
                    for place, image in enumerate(piece, row):
                        out[place] = fit_array(
                            image, height=height, width=width, channels=channels, fit=target.fit
                        )
                row += len(piece)
        return {}

    def key() -> str:
        stat = path.stat()
        return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {target.fit}"

    pixels, _ = stored((total, height, width, channels), key, target, fill, say)
    numbers, label_names = _numbered(labels, names, path) if labels is not None else (None, None)
    return from_arrays(
        model_name(path),
        pixels,
        numbers,
        label_names,
        official_test=parts[-1].shape[0] if len(parts) > 1 else 0,
        licence="not known to vaeserve: that of the images in the file",
    )


Found = tuple[list[Part], NDArray[Any] | None, NDArray[Any] | None]  # parts, labels [n], label_names


def _npy(path: Path) -> Found:
    return [_part(path, "")], None, None


def _npz(path: Path) -> Found:
    # Opened here, because numpy does not close a file that is not an archive.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        members = list(archive.files)
        layout = next((found for found in LAYOUTS if found[0] in members), None)
        if layout is None:
            if len(members) != 1:
                raise DataError(
                    f"{path} has {', '.join(members) or 'no arrays'}: name the images `images`, or "
                    "`train_images` and `test_images`"
                )
            return [_part(path, members[0])], None, None
        chosen = [name for name in layout if name in members]
        if len(layout) > 1 and layout[-1] not in members:
            raise DataError(f"{path} has {layout[0]} but no {layout[-1]}: call a set without parts `images`")
        target = [_labels_of(name) for name in chosen]
        missing = [name for name in target if name not in members]
        if missing and len(missing) < len(target):
            raise DataError(f"{path} has labels for some of its parts, but no {', '.join(missing)}")
        labels = None if missing else np.concatenate([archive[name].reshape(-1) for name in target])
        parts = [_part(path, name) for name in chosen]
        return parts, labels, archive["label_names"] if "label_names" in members else None


def _labels_of(images: str) -> str:
    return images.replace("images", "labels") if "images" in images else images.replace("x_", "y_")


def _numbered(
    labels: NDArray[Any], names: NDArray[Any] | None, path: Path
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Labels as 0 … classes − 1, and the classes' names."""
    if labels.dtype.kind not in "iuUS":
        raise DataError(f"{path}: labels must be integers or strings, not {labels.dtype}")
    if names is not None and labels.dtype.kind in "iu":
        if labels.min() < 0 or labels.max() >= len(names):
            raise DataError(f"{path}: labels go to {labels.max()}, and label_names has {len(names)} names")
        return labels.astype(np.int64), tuple(map(str, names))
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        return None, None
    return numbers.astype(np.int64), tuple(map(str, classes))


def _part(path: Path, member: str) -> Part:
    with _opened(path, member) as (_, shape, fortran, dtype):
        pass
    where = f"{path}: {member}" if member else str(path)
    full = (*shape, 1) if len(shape) == 3 else shape
    if len(full) != 4 or full[3] not in (1, 3) or 0 in full:
        hint = "; channels come last" if len(full) == 4 and full[1] in (1, 3) else ""
        raise DataError(f"{where} is {list(shape)}, images must be [n, h, w] or [n, h, w, 1 or 3]{hint}")
    if fortran:
        raise DataError(f"{where} is in Fortran order: save numpy.ascontiguousarray of it")
    if dtype != np.uint8 and dtype.kind not in "bf":
        raise DataError(f"{where} is {dtype}; images must be uint8, or booleans, or floats in [0, 1]")
    return Part(path, member, (full[0], full[1], full[2], full[3]), dtype)


def _levels(array: NDArray[Any], where: str) -> ByteImages:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if not (array.min() >= 0 and array.max() <= 1):  # written so that NaN fails
        raise DataError(
            f"{where} has floats from {array.min():g} to {array.max():g}: bring them to [0, 1], or to uint8"
        )
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8)


@contextmanager
def _opened(path: Path, member: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]]:
    """The stream behind the header of an array, and what the header says."""
    if not member:
        with path.open("rb") as file:
            yield (file, *_header(file))
        return
    with zipfile.ZipFile(path) as archive, archive.open(f"{member}.npy") as stream:
        yield (stream, *_header(stream))


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    return npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)
