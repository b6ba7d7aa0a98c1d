"""LitServe with batching, which is off by default. It accepts images in forms, not as raw bodies."""

import io
import sys

import litserve
import numpy as np
import onnxruntime as ort
from fastapi import Request
from PIL import Image


class Encoder(litserve.LitAPI):
    def setup(self, device):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(f"{sys.argv[1]}/reference/1/encoder.onnx", options)

    def decode_request(self, request: Request):
        return np.asarray(Image.open(io.BytesIO(request["image"].file.read())).convert("L"))

    def batch(self, inputs):
        return np.stack(inputs)[..., np.newaxis]

    def predict(self, images):
        (mean,) = self.session.run(["mean"], {"image": images})
        return mean

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"mean": [output.tolist()]}


if __name__ == "__main__":
    api = Encoder(max_batch_size=32, batch_timeout=0.0, api_path="/encode")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, track_requests=False)
    server.run(port=int(sys.argv[2]), log_level="warning", generate_client_file=False, access_log=False)
