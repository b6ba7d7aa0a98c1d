"""Print the images of a folder that the model reconstructs badly, worst first."""

import os
import sys
from pathlib import Path

import numpy as np

from vaeserve import Client

files = sorted(Path(sys.argv[1]).rglob("*.png"))
with Client(os.environ.get("VAESERVE_URL", "http://127.0.0.1:8000")) as client:
    error = client.reconstruct(files).error  # mean squared error of each, on [0, 1]

# An outlier is more than six robust standard deviations above the median of this folder.
median = np.median(error)
deviation = 1.4826 * np.median(np.abs(error - median))
for index in np.argsort(-error):
    if error[index] > median + 6 * deviation:
        print(f"{error[index]:.4f}  {files[index]}")
