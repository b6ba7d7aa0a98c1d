"""Quantizes the graphs of a bundle to eight-bit integers: smaller, faster on a CPU, slightly less accurate.

Convolutions and dense layers compute in int8 (Jacob et al., arXiv 1712.05877), by static quantization in QDQ
form. Training images and their latents set the ranges of activations. The output layer and the linear path
stay in float32, and so do transposed convolutions, for which onnxruntime has no integer kernel. Weights have
seven bits: the eighth did not improve accuracy, and on x86 CPUs without VNNI the sum of two products
overflows sixteen bits.
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

QUANTIZED = ["Conv", "Gemm", "MatMul"]
LINEAR = "linear.weights"  # in the names of its weights
CALIBRATED_ON = 512  # images; more hardly change the ranges
CHUNK = 64
SPEED_BATCHES = (1, 32)
SPEED_SECONDS = 1.0  # for each ratio


def quantize(draft: Draft, images: NDArray[np.uint8], latents: NDArray[np.float32]) -> Draft:
    """Replace the graphs of a draft with quantized ones; returns the draft as `<name>-int8`.

    `images` uint8 [n, h, w, c] and `latents` float32 [n, *latent] set the ranges. The new golden vectors are
    outputs of the quantized graphs: they check that another machine computes the same, not how close that is
    to float32. Other CPUs have other kernels, which round differently. The tolerance is therefore 20 times
    the difference between the optimised and the plain kernels here, and at least the error of quantizing.
    """
    exact = draft.bundle().golden()
    for name, inputs in (("encoder.onnx", {"image": images}), ("decoder.onnx", {"z": latents})):
        _quantize_graph(draft.folder / name, inputs)
    served, plain = (_computed(draft.folder, exact.input, optimise) for optimise in (True, False))
    # A flow is not quantized, and neither are its golden vectors.
    served._replace(eps=exact.eps, z=exact.z, log_density=exact.log_density).save(draft.folder / "golden.npz")
    errors = {
        key: max(
            20 * _error(getattr(served, key), getattr(plain, key)),
            _error(getattr(served, key), getattr(exact, key)),
        )
        for key in ("mean", "logvar", "pixels")
    }
    pixels = min(0.1, max(1e-3, errors["pixels"]))
    tolerance = Tolerance(
        latent=min(1.0, max(1e-3, errors["mean"], errors["logvar"])), pixels=pixels, levels=ceil(255 * pixels)
    )
    update = {"name": f"{draft.manifest.name}-int8", "tolerance": tolerance}
    return Draft(draft.folder, draft.manifest.model_copy(update=update))


def speed(float32: Engine, int8: Engine) -> dict[str, float]:
    """The median time of `float32` over that of `int8`, for encode and decode at each batch size."""
    image, latent = int8.manifest.image, int8.manifest.latent.shape
    found = {}
    for n in SPEED_BATCHES:
        images = np.resize(int8.bundle.golden().input, (n, *image.shape))
        latents = np.resize(int8.bundle.golden().mean, (n, *latent))
        found[f"encode, batch {n}"] = _ratio(partial(Engine.encode, images=images), float32, int8)
        found[f"decode, batch {n}"] = _ratio(partial(Engine.decode, latents=latents), float32, int8)
    return found


def _ratio(run: Callable[[Engine], Any], float32: Engine, int8: Engine) -> float:
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + SPEED_SECONDS
    while time.perf_counter() < end:
        for engine, measured in zip((float32, int8), times, strict=True):
            start = time.perf_counter()
            run(engine)
            measured.append(time.perf_counter() - start)
    return float(np.median(times[0]) / np.median(times[1]))


def _quantize_graph(path: Path, inputs: dict[str, NDArray[Any]]) -> None:
    """Replace a graph file by its quantized form; `inputs` has its one input array, by name."""
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

    nodes = onnx.load(path).graph.node
    linear = [node.name for node in nodes if any(LINEAR in name for name in node.input)]
    layers = [
        node.name
        for node in nodes
        if node.op_type in (*QUANTIZED, "ConvTranspose") and node.name not in linear
    ]
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it recommends a preprocessing that the exporter has done
    try:
        quantize_static(
            str(path),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=layers[-1:] + linear,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        root.setLevel(level)


def _computed(folder: Path, images: NDArray[np.uint8], optimise: bool) -> Golden:
    """The outputs of the graphs in the folder; without `optimise`, each operator runs in its plain kernel."""
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


def _error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found.astype(np.float64) - expected).max())
