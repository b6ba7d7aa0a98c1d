"""A bundle's graphs in eight-bit integers: smaller, faster on a CPU, and a little off.

Convolutions and dense layers compute in int8 (Jacob et al., arXiv 1712.05877), by onnxruntime's static
quantisation in QDQ form; ranges of activations are those of training images and of their latents. The layer
that gives the outputs stays in float32, and so do transposed convolutions: onnxruntime has no integer
kernel for them, and would only convert to and fro. Weights have seven bits: the eighth bought no accuracy,
and on x86 CPUs without VNNI two products of it overflow their sixteen bits.
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import Draft, Golden
from vaeserve.bundle.manifest import Tolerance
from vaeserve.bundle.ort import ort

QUANTISED = ["Conv", "Gemm", "MatMul"]
CALIBRATED_ON = 512  # images: more hardly move the ranges
CHUNK = 64
SPEED_BATCHES = (1, 32)
SPEED_SECONDS = 1.0  # of each figure


def quantize(draft: Draft, images: NDArray[np.uint8], latents: NDArray[np.float32]) -> Draft:
    """Write the draft's graphs over with quantized ones, and return it as `<name>-int8`.

    `images` uint8 [n, h, w, c] and `latents` float32 [n, *latent] set the ranges. The golden vectors become
    what the quantized graphs give: they prove that another machine computes the same, not how near that is
    to float32. Other CPUs have other kernels, which round elsewhere. So the tolerance is 20 times what
    onnxruntime's plain kernels are off here, and at least what quantising cost: nearer nobody needs to be.
    """
    exact = draft.bundle().golden()
    for name, inputs in (("encoder.onnx", {"image": images}), ("decoder.onnx", {"z": latents})):
        _quantize_graph(draft.folder / name, inputs)
    served, plain = (_computed(draft.folder, exact.input, optimise) for optimise in (True, False))
    # A flow stays as it is, and so does what was given for it.
    served._replace(eps=exact.eps, z=exact.z, log_density=exact.log_density).save(draft.folder / "golden.npz")
    off = {
        key: max(
            20 * _off(getattr(served, key), getattr(plain, key)),
            _off(getattr(served, key), getattr(exact, key)),
        )
        for key in ("mean", "logvar", "pixels")
    }
    pixels = min(0.1, max(1e-3, off["pixels"]))
    tolerance = Tolerance(
        latent=min(1.0, max(1e-3, off["mean"], off["logvar"])), pixels=pixels, levels=ceil(255 * pixels)
    )
    update = {"name": f"{draft.manifest.name}-int8", "tolerance": tolerance}
    return Draft(draft.folder, draft.manifest.model_copy(update=update))


def speed(float32: Engine, int8: Engine) -> dict[str, float]:
    """How many times as fast `int8` is, by "encode, batch 1" and so on: median times, taken in turn."""
    image, latent = int8.manifest.image, int8.manifest.latent.shape
    found = {}
    for n in SPEED_BATCHES:
        images = np.resize(int8.bundle.golden().input, (n, *image.shape))
        latents = np.resize(int8.bundle.golden().mean, (n, *latent))
        found[f"encode, batch {n}"] = _ratio(partial(Engine.encode, images=images), float32, int8)
        found[f"decode, batch {n}"] = _ratio(partial(Engine.decode, latents=latents), float32, int8)
    return found


def _ratio(run: Callable[[Engine], Any], float32: Engine, int8: Engine) -> float:
    took: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + SPEED_SECONDS
    while time.perf_counter() < until:
        for engine, times in zip((float32, int8), took, strict=True):
            began = time.perf_counter()
            run(engine)
            times.append(time.perf_counter() - began)
    return float(np.median(took[0]) / np.median(took[1]))


def _quantize_graph(path: Path, inputs: dict[str, NDArray[Any]]) -> None:
    """Replace the graph; `inputs`: the one array that it takes, by name."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            ((name, array),) = inputs.items()
            self._batches: Iterator[dict[str, NDArray[Any]]] = iter(
                [{name: array[start : start + CHUNK]} for start in range(0, len(array), CHUNK)]
            )

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self._batches, None)

    layers = [
        node.name for node in onnx.load(path).graph.node if node.op_type in (*QUANTISED, "ConvTranspose")
    ]
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it advises a preprocessing that the exporter has done
    try:
        quantize_static(
            str(path),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=layers[-1:],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        root.setLevel(level)


def _computed(folder: Path, images: NDArray[np.uint8], optimise: bool) -> Golden:
    """What the graphs in the folder give; without optimisation each operator runs in its plain kernel."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL

    def run(name: str, outputs: list[str], inputs: dict[str, NDArray[Any]]) -> list[Any]:
        graph = (folder / name).read_bytes()
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return list(session.run(outputs, inputs))

    mean, logvar = run("encoder.onnx", ["mean", "logvar"], {"image": images})
    image, pixels = run("decoder.onnx", ["image", "pixels"], {"z": mean})
    return Golden(images, mean, logvar, image, pixels)


def _off(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found.astype(np.float64) - expected).max())
