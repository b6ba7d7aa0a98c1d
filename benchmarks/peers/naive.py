"""FastAPI and onnxruntime in the simplest way."""

import io
import sys
from typing import Annotated

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import Body, FastAPI
from PIL import Image

app = FastAPI()
session = ort.InferenceSession(f"{sys.argv[1]}/reference/1/encoder.onnx")


@app.post("/encode")
def encode(data: Annotated[bytes, Body(media_type="image/png")]):
    image = np.asarray(Image.open(io.BytesIO(data)).convert("L").resize((28, 28)))
    (mean,) = session.run(["mean"], {"image": image[np.newaxis, :, :, np.newaxis]})
    return {"mean": mean.tolist()}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False)
