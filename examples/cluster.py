"""Embed a folder of images, cluster the embeddings, and draw each cluster as a row of one picture."""

import os
import sys
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans

from vaeserve import Client
from vaeserve.client.png import png

CLUSTERS, SHOWN = 10, 12

folder, output = map(Path, sys.argv[1:])
files = sorted(folder.rglob("*.png"))
with Client(os.environ.get("VAESERVE_URL", "http://127.0.0.1:8000")) as client:
    means = client.encode(files).mean  # float32 [n, *latent]
    flat = means.reshape(len(means), -1)
    found = KMeans(CLUSTERS, n_init=4, random_state=0).fit(flat)
    centres = client.decode(found.cluster_centers_.reshape(-1, *means.shape[1:]))
    rows = []
    for cluster, centre in enumerate(centres):
        members = np.flatnonzero(found.labels_ == cluster)
        nearest = members[np.argsort(found.transform(flat[members])[:, cluster])][:SHOWN]
        print(cluster, *(files[index].name for index in nearest))
        images = client.reconstruct([files[index] for index in nearest]).images  # all of the model's size
        row = np.concatenate([centre[np.newaxis], images])
        row = np.pad(row, [(0, SHOWN + 1 - len(row)), (0, 0), (0, 0), (0, 0)])
        rows.append(np.concatenate(row, axis=1))
output.write_bytes(png(np.concatenate(rows)[np.newaxis]))
