"""BentoML with adaptive batching, which is off by default."""

import os
import sys

import bentoml
import numpy as np
import onnxruntime as ort
from PIL.Image import Image


@bentoml.service(workers=1, traffic={"timeout": 60}, metrics={"enabled": False})
class Encoder:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(f"{os.environ['MODELS']}/reference/1/encoder.onnx", options)

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
    def encode(self, images: list[Image]) -> list[list[float]]:
        pixels = np.stack([np.asarray(image.convert("L")) for image in images])
        (mean,) = self.session.run(["mean"], {"image": pixels[..., np.newaxis]})
        return mean.tolist()


if __name__ == "__main__":
    models, port = sys.argv[1:]
    environment = os.environ | {"MODELS": models, "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "serve", "bento:Encoder", "--port", port]
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    os.execve(sys.executable, command, environment)
