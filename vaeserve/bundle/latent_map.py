"""The map of a bundle (map.npz): held-out images on a plane of the latent space.

The two principal components of the posterior means span the plane, so every point of it is a latent:
`mean + x · components[0] + y · components[1]`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle.arrays import ByteImages, Floats
from vaeserve.bundle.files import Bundle, BundleError

NO_LABEL = -1
LARGEST = 4096  # points, and pixels a side of a thumbnail


class LatentMap(NamedTuple):
    """A plane and n images on it; floats are float32, d is the size of the flattened latent.

    The plane: mean [d], components [2, d], orthonormal, and variance [2], the share along each. The images:
    points [n, 2], labels int16 [n], latents [n, *latent] (the posterior means), thumbnails uint8
    [n, h, w, c].
    """

    mean: Floats
    components: Floats
    variance: Floats
    points: Floats
    labels: NDArray[np.int16]
    latents: Floats
    thumbnails: ByteImages


def read_map(bundle: Bundle) -> LatentMap | None:
    """The map of a bundle, None where it has none; BundleError for a bad file."""
    name, manifest = bundle.manifest.map, bundle.manifest
    if name is None:
        return None
    arrays = bundle.arrays(name)
    if (
        "latents" in arrays and arrays["latents"].dtype == np.float16
    ):  # stored to save space; precise enough for a map
        arrays["latents"] = arrays["latents"].astype(np.float32)
    d, n = manifest.latent.size, len(arrays["points"]) if arrays.get("points", np.empty(())).ndim else 0
    thumbnail = arrays["thumbnails"].shape[1:3] if "thumbnails" in arrays else ()
    expected = {
        "mean": (np.float32, (d,)),
        "components": (np.float32, (2, d)),
        "variance": (np.float32, (2,)),
        "points": (np.float32, (n, 2)),
        "labels": (np.int16, (n,)),
        "latents": (np.float32, (n, *manifest.latent.shape)),
        "thumbnails": (np.uint8, (n, *thumbnail, manifest.image.channels)),
    }
    for key, (dtype, shape) in expected.items():
        array = arrays.get(key)
        if array is None or array.dtype != dtype or array.shape != shape or not np.isfinite(array).all():
            raise BundleError(
                f"{bundle.path / name}: {key} must be finite {np.dtype(dtype)} {list(shape)}; "
                "publish the model again"
            )
    labels = len(manifest.labels or ())
    if not 0 < n <= LARGEST or not all(0 < side <= LARGEST for side in thumbnail) or len(thumbnail) != 2:
        raise BundleError(f"{bundle.path / name}: a map has 1 to {LARGEST} points; publish the model again")
    if not ((arrays["labels"] >= NO_LABEL) & (arrays["labels"] < labels)).all():
        raise BundleError(
            f"{bundle.path / name}: labels must be below {labels}, their number; publish the model again"
        )
    return LatentMap(**{key: arrays[key] for key in LatentMap._fields})
