"""The named data sets: scikit-learn's digits, and MNIST and Fashion-MNIST as IDX files."""

import dataclasses
import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data import download
from training.data.cache import sized
from training.data.images import DataError, Images, ImageTarget, Say, from_arrays

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclasses.dataclass(frozen=True)
class IdxSet:
    """Four gzipped IDX files: their mirrors, digests, labels and licence."""

    mirrors: tuple[str, ...]
    digests: tuple[str, str, str, str]
    of: download.DigestOf
    label_names: tuple[str, ...]
    licence: str


MNIST = IdxSet(
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    # Of the unpacked bytes, because gzip's header differs between these mirrors.
    digests=(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    of="content",
    label_names=tuple("0123456789"),
    licence="CC BY-SA 3.0 (Y. LeCun, C. Cortes: the MNIST database of handwritten digits)",
)
FASHION_MNIST = IdxSet(
    mirrors=(
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    # Of the published .gz files. These are the values that public projects pin beside the MD5s of the
    # authors' README; the download itself was not tried where this was written.
    digests=(
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    of="file",
    label_names=(
        "T-shirt", "trouser", "pullover", "dress", "coat",
        "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
    licence="MIT (Zalando SE: Fashion-MNIST, arXiv 1708.07747)",
)  # fmt: skip
IDX_SETS = {"mnist": MNIST, "fashion-mnist": FASHION_MNIST}


def load(name: str, folder: Path, target: ImageTarget, say: Say) -> Images:
    """The set of this name; IDX files are read from `folder`/`name`, or downloaded to it."""
    return digits(target, say) if name == "digits" else idx(name, IDX_SETS[name], folder / name, target, say)


def digits(target: ImageTarget, say: Say) -> Images:
    """scikit-learn's handwritten digits: 1,797 images of 8×8 with 17 grey levels; needs no network."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    original = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    pixels = sized(original, "digits", target, say)
    return from_arrays(
        "digits",
        pixels,
        bunch.target.astype(np.int64),
        tuple(str(digit) for digit in range(10)),
        levels=17 if pixels is original else 256,  # resampling creates values between the 17
        licence="CC BY 4.0 (E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI)",
    )


def idx(name: str, files: IdxSet, folder: Path, target: ImageTarget, say: Say) -> Images:
    """60,000 training and 10,000 test images of 28×28, from the four files in `folder`."""
    train, train_labels, test, test_labels = (
        _read(download.fetch(files.mirrors, f"{file}.gz", folder, digest, of=files.of))
        for file, digest in zip(FILES, files.digests, strict=True)
    )
    return from_arrays(
        name,
        sized(np.concatenate([train, test])[..., None], name, target, say),
        np.concatenate([train_labels, test_labels]).astype(np.int64),
        files.label_names,
        official_test=len(test_labels),
        licence=files.licence,
    )


def _read(path: Path) -> NDArray[np.uint8]:
    """A gzipped IDX file of unsigned bytes: magic 0x000008, number of axes, their lengths, the bytes."""
    content = gzip.decompress(path.read_bytes())
    zeros, kind, axes = struct.unpack(">HBB", content[:4])
    if (zeros, kind) != (0, 8):
        raise DataError(f"{path} is not an IDX file of bytes: delete it to download it again")
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
