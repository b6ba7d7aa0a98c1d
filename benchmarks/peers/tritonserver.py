"""Triton's python backend through NVIDIA's pytriton. It receives raw pixels, so it decodes no image."""

import sys

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(f"{sys.argv[1]}/reference/1/encoder.onnx", options)


@batch
def encode(image):
    return {"mean": session.run(["mean"], {"image": image})[0]}


if __name__ == "__main__":
    config = TritonConfig(
        http_address="127.0.0.1", http_port=int(sys.argv[2]), allow_grpc=False, allow_metrics=False
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="encode",
            infer_func=encode,
            inputs=[Tensor(name="image", dtype=np.uint8, shape=(28, 28, 1))],
            outputs=[Tensor(name="mean", dtype=np.float32, shape=(32,))],
            config=ModelConfig(max_batch_size=32, batcher=DynamicBatcher()),
        )
        triton.serve()
