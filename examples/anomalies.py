"""Print the images of a folder that the model cannot explain, worst first."""

import os
import sys
from pathlib import Path

import numpy as np

from vaeserve import Client

files = sorted(Path(sys.argv[1]).rglob("*.png"))
with Client(os.environ.get("VAESERVE_URL", "http://127.0.0.1:8000")) as client:
    error = client.reconstruct(files).error  # mean squared error of each, on [0, 1]

# Far off means: by many times the usual spread around the usual error of this folder.
usual = np.median(error)
spread = np.median(np.abs(error - usual)) * 1.4826
for index in np.argsort(-error):
    if error[index] > usual + 6 * spread:
        print(f"{error[index]:.4f}  {files[index]}")
