"""Runs onnxruntime alone in a loop: the rate that all servers are compared with.

`python -m benchmarks.raw GRAPH BATCH THREADS SECONDS` prints images a second and the median seconds of a run.
"""

import sys
import time
from pathlib import Path

import numpy as np

from vaeserve.bundle.ort import ort

ROWS = {
    "tensor(uint8)": lambda shape: np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
    "tensor(float)": lambda shape: np.random.default_rng(0).standard_normal(shape).astype(np.float32),
}


def main() -> None:
    graph, batch, threads, seconds = sys.argv[1:]
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(threads)
    session = ort.InferenceSession(Path(graph).read_bytes(), options, providers=["CPUExecutionProvider"])
    node, output = session.get_inputs()[0], session.get_outputs()[0].name
    rows = {node.name: ROWS[node.type]((int(batch), *node.shape[1:]))}
    # A decoder's second output is the same image in floats.
    outputs = None if node.name == "image" else [output]
    for _ in range(5):
        session.run(outputs, rows)
    print("ready", flush=True)
    sys.stdin.readline()
    took = []
    until = time.perf_counter() + float(seconds)
    while (began := time.perf_counter()) < until:
        session.run(outputs, rows)
        took.append(time.perf_counter() - began)
    print(len(took) * int(batch) / sum(took), np.median(took))


if __name__ == "__main__":
    main()
