"""Held-out images on a plane of the latent space: what a bundle's map.npz holds.

The plane is spanned by the two principal components of the posterior means, so that every place on it is a
latent again: `mean + x · components[0] + y · components[1]`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle.files import Bundle, BundleError

Floats = NDArray[np.float32]

NO_LABEL = -1
LARGEST = 4096  # points, and the side of a thumbnail: more is no map


class LatentMap(NamedTuple):
    """A plane and n images on it; floats are float32, d is the flattened latent's size.

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
    thumbnails: NDArray[np.uint8]


def read_map(bundle: Bundle) -> LatentMap | None:
    """What a bundle has of it; BundleError when the file is not what it should be."""
    name, manifest = bundle.manifest.map, bundle.manifest
    if name is None:
        return None
    arrays = bundle.arrays(name)
    if "latents" in arrays and arrays["latents"].dtype == np.float16:  # half the bytes, and enough for a map
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
        raise BundleError(f"{bundle.path / name}: 1 to {LARGEST} points make a map; publish the model again")
    if not ((arrays["labels"] >= NO_LABEL) & (arrays["labels"] < labels)).all():
        raise BundleError(
            f"{bundle.path / name}: labels must number the manifest's {labels}; publish the model again"
        )
    return LatentMap(**{key: arrays[key] for key in LatentMap._fields})
