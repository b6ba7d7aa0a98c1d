"""Draw new images of each label of the model, one row per label."""

import json
import os
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from vaeserve import Client
from vaeserve.client.png import png

COLUMNS = 10
url = os.environ.get("VAESERVE_URL", "http://127.0.0.1:8000")

with Client(url) as client:
    name = next(model["name"] for model in client.models()["models"] if model["default"])
    with urlopen(f"{url}/models/{name}") as answer:
        labels = json.load(answer)["manifest"]["labels"]
    rows = [client.sample(COLUMNS, seed=7, label=label).images for label in labels]
Path(sys.argv[1]).write_bytes(png(np.concatenate([np.concatenate(row, axis=1) for row in rows])[np.newaxis]))
print(f"{sys.argv[1]}: {COLUMNS} images of each of {', '.join(labels)}")
