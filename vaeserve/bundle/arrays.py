"""The array types of the bundle: each kind of value has one dtype and one layout."""

import numpy as np
from numpy.typing import NDArray

ByteImages = NDArray[np.uint8]  # [n, h, w, c]
Floats = NDArray[np.float32]  # latents [n, *latent], pixels [n, h, w, c]
Doubles = NDArray[np.float64]  # quantities in nats, one a row: [n]
