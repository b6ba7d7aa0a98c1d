"""Array types."""

import numpy as np
from numpy.typing import NDArray

ByteImages = NDArray[np.uint8]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
