"""Runs a bundle with onnxruntime, after its graphs have reproduced the golden vectors."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle.arrays import ByteImages, Doubles, Floats
from vaeserve.bundle.calibration import read_calibration
from vaeserve.bundle.files import DENSITY, Bundle, BundleError, read_bundle
from vaeserve.bundle.latent_map import read_map
from vaeserve.bundle.manifest import Manifest
from vaeserve.bundle.ort import ort
from vaeserve.bundle.posterior import Posterior
from vaeserve.bundle.prior import Flow, read_prior

Provider = Literal["cpu", "cuda"]
PROVIDERS: dict[Provider, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": (
        "CUDAExecutionProvider",
        {
            "use_tf32": "0",  # ten bits of mantissa cannot reproduce the golden vectors
            "cudnn_conv_algo_search": "HEURISTIC",  # the exhaustive one takes seconds for each new batch size
            "arena_extend_strategy": "kSameAsRequested",
        },
    ),
}

_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


class Engine:
    """A bundle that is ready to compute. Its methods are pure, and safe to call from any thread.

    Opening it verifies digests, and the graphs' names, types and shapes, and replays the golden vectors on
    the provider that will serve. BundleError if any of it fails. `prior`, `calibration` and `map` are None
    where the bundle has none.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 1,
        optimise: bool = True,
        provider: Provider = "cpu",
    ) -> None:
        """Open `bundle` with `threads` intra-op threads for each session.

        `optimise=False` is for tests: the golden vectors must hold without graph optimisation as well.
        """
        check_provider(provider)
        self.bundle = bundle
        self.calibration = read_calibration(bundle)
        self.map = read_map(bundle)
        options = _options(threads, optimise)
        self._flow, self._density = _flow(bundle, options, provider)
        flow = Flow(self.transform, self.log_density if self._density else None) if self._flow else None
        self.prior = read_prior(bundle, flow)
        self._encoder = _session(bundle, "encoder.onnx", options, provider)
        self._decoder = _session(bundle, "decoder.onnx", options, provider)
        self._image_shape = bundle.manifest.image.shape
        self._latent_shape = latent = bundle.manifest.latent.shape
        _check_graph(
            bundle,
            "encoder.onnx",
            self._encoder,
            inputs={"image": ("uint8", self._image_shape)},
            outputs={"mean": ("float32", latent), "logvar": ("float32", latent)},
        )
        _check_graph(
            bundle,
            "decoder.onnx",
            self._decoder,
            inputs={"z": ("float32", latent)},
            outputs={"image": ("uint8", self._image_shape), "pixels": ("float32", self._image_shape)},
        )
        self._replay_golden()

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def encode(self, images: ByteImages) -> Posterior:
        """uint8 [n, h, w, c] → the posterior's mean and logvar, float32 [n, *latent]."""
        _check_array("images", images, np.uint8, self._image_shape)
        return Posterior(*self._encoder.run(["mean", "logvar"], {"image": images}))

    def decode(self, latents: Floats) -> ByteImages:
        """float32 [n, *latent] → images, uint8 [n, h, w, c]."""
        _check_array("latents", latents, np.float32, self._latent_shape)
        (images,) = self._decoder.run(["image"], {"z": latents})
        return images  # type: ignore[no-any-return]

    def pixels(self, latents: Floats) -> Floats:
        """float32 [n, *latent] → the likelihood's mean, float32 [n, h, w, c] in [0, 1]."""
        _check_array("latents", latents, np.float32, self._latent_shape)
        (pixels,) = self._decoder.run(["pixels"], {"z": latents})
        return pixels  # type: ignore[no-any-return]

    def transform(self, eps: Floats) -> Floats:
        """noise float32 [n, *latent] → latents float32 [n, *latent], through the flow of `prior.flow`."""
        assert self._flow is not None
        _check_array("eps", eps, np.float32, self._latent_shape)
        (z,) = self._flow.run(["z"], {"eps": eps})
        return z  # type: ignore[no-any-return]

    def log_density(self, latents: Floats) -> Doubles:
        """latents float32 [n, *latent] → log p(z) under the flow of `prior.flow` in nats, float64 [n]."""
        assert self._density is not None
        _check_array("latents", latents, np.float32, self._latent_shape)
        (density,) = self._density.run(["log_density"], {"z": latents})
        return density.astype(np.float64)  # type: ignore[no-any-return]

    def _replay_golden(self) -> None:
        golden, allowed = self.bundle.golden(), self.manifest.tolerance
        # A log density is a sum over dimensions, and each may be off by `latent`.
        of_density = allowed.latent * self.manifest.latent.size
        try:
            posterior = self.encode(golden.input)
            image, pixels = self._decoder.run(["image", "pixels"], {"z": golden.mean})
            of_flow: list[tuple[str, Any, Any, float]] = []
            # `Bundle.golden` has checked that a flow has its `eps`; the second test is for mypy.
            if self._flow is not None and golden.eps is not None:
                of_flow.append(("z", self.transform(golden.eps), golden.z, allowed.latent))
            if self._density is not None:
                eps, density = self._density.run(["eps", "log_density"], {"z": golden.z})
                of_flow.append(("eps", eps, golden.eps, allowed.latent))
                of_flow.append(("log_density", density, golden.log_density, of_density))
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise BundleError(
                f"{self.bundle.path}: the graphs fail on the golden vectors ({_first_line(error)}); "
                "export the model again"
            ) from error
        for what, found, expected, limit in (
            ("mean", posterior.mean, golden.mean, allowed.latent),
            ("logvar", posterior.logvar, golden.logvar, allowed.latent),
            ("pixels", pixels, golden.pixels, allowed.pixels),
            ("image", image, golden.image, float(allowed.levels)),
            *of_flow,
        ):
            if found.shape != expected.shape:
                raise BundleError(
                    f"{self.bundle.path}: `{what}` has shape {list(found.shape)}, the golden vectors have "
                    f"{list(expected.shape)}; export the model again"
                )
            off = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
            if not off <= limit:  # written so that NaN fails
                raise BundleError(
                    f"{self.bundle.path}: `{what}` is off the golden vectors by {off:.3g}, allowed is "
                    f"{limit:g}; this machine or its onnxruntime computes something else than the trained "
                    "model: try another onnxruntime version, or export the model again"
                )


def open_bundle(path: str | Path, *, threads: int = 1, provider: Provider = "cpu") -> Engine:
    """Open the bundle in folder `path` for use without a server, in a notebook or a batch job.

    `threads` is the number of CPU threads of each graph. BundleError if the bundle must not be used.

        engine = open_bundle("models/mnist/3")
        mean, logvar = engine.encode(images)  # uint8 [n, h, w, c] → float32 [n, *latent]
    """
    return Engine(read_bundle(Path(path), verify=False), threads=threads, provider=provider)


def _flow(
    bundle: Bundle, options: ort.SessionOptions, provider: Provider
) -> tuple[ort.InferenceSession | None, ort.InferenceSession | None]:
    """The sessions of a flow prior: noise to latents, and latents to their density; None where absent."""
    spec, latent = bundle.manifest.prior, bundle.manifest.latent.shape
    if spec is None or spec.kind != "flow":
        return None, None
    if spec.file is None or not spec.file.endswith(".onnx"):  # only those are checked as graphs
        raise BundleError(
            f"{bundle.path}: its prior is a flow but names no graph (prior.onnx); publish it again"
        )
    flow, density = _session(bundle, spec.file, options, provider), None
    vectors = ("float32", latent)
    _check_graph(bundle, spec.file, flow, inputs={"eps": vectors}, outputs={"z": vectors})
    if DENSITY in bundle.manifest.files:
        density = _session(bundle, DENSITY, options, provider)
        outputs: dict[str, tuple[str, tuple[int, ...]]] = {"eps": vectors, "log_density": ("float32", ())}
        _check_graph(bundle, DENSITY, density, inputs={"z": vectors}, outputs=outputs)
    return flow, density


def check_provider(provider: Provider) -> None:
    """BundleError if this onnxruntime lacks the provider: it would fall back to the CPU with a log line."""
    if PROVIDERS[provider][0] not in ort.get_available_providers():
        raise BundleError(
            f"provider {provider} needs {PROVIDERS[provider][0]}, which this onnxruntime lacks; "
            "install onnxruntime-gpu in its place, or leave out --provider"
        )
    if provider == "cuda":
        ort.preload_dlls()  # CUDA and cuDNN installed by pip


def _options(threads: int, optimise: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads  # 1 = no pool, the calling thread computes
    options.inter_op_num_threads = 1  # a VAE is a chain: there is nothing to run in parallel
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    # A spinning pool takes the CPU from the event loop and from everything else in the container.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: what it warns of is checked here
    return options


def _session(
    bundle: Bundle, name: str, options: ort.SessionOptions, provider: Provider
) -> ort.InferenceSession:
    graph = bundle.read(name)  # verified bytes: what is checked is what runs, whatever happens on disk
    try:
        session = ort.InferenceSession(graph, options, providers=[PROVIDERS[provider]])
    except Exception as error:  # a dozen types without a common base class
        raise BundleError(
            f"{bundle.path / name}: onnxruntime cannot load it ({_first_line(error)}); export the model again"
        ) from error
    session.disable_fallback()
    if session.get_providers()[0] != PROVIDERS[provider][0]:  # present, and yet it did not start
        raise BundleError(
            f"{bundle.path / name}: provider {provider} does not start here and onnxruntime fell back to "
            f"{session.get_providers()[0]}; see its message above, and check driver, CUDA and cuDNN"
        )
    return session


def _check_graph(
    bundle: Bundle,
    name: str,
    session: ort.InferenceSession,
    *,
    inputs: dict[str, tuple[str, tuple[int, ...]]],
    outputs: dict[str, tuple[str, tuple[int, ...]]],
) -> None:
    for side, expected, found in (
        ("input", inputs, {node.name: node for node in session.get_inputs()}),
        ("output", outputs, {node.name: node for node in session.get_outputs()}),
    ):
        if set(expected) != set(found):
            raise BundleError(
                f"{bundle.path / name}: its {side}s are {', '.join(sorted(found))}, expected "
                f"{', '.join(sorted(expected))}; export the model again"
            )
        for key, (dtype, shape) in expected.items():
            node = found[key]
            batch, *rest = node.shape if node.shape else [None]
            # A dimension without a number is free; the golden vectors check those.
            fits = len(rest) == len(shape) and all(
                isinstance(b, str) or b is None or a == b for a, b in zip(shape, rest, strict=False)
            )
            if node.type != _TYPES[dtype] or isinstance(batch, int) or not fits:
                raise BundleError(
                    f"{bundle.path / name}: {side} `{key}` is {node.type} {node.shape}, the manifest says "
                    f"{dtype} [n, {', '.join(map(str, shape))}] with a free n; export the model again"
                )


def _check_array(what: str, array: NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape[1:] != shape:
        raise ValueError(
            f"{what} must be {np.dtype(dtype)} [n, {', '.join(map(str, shape))}], "
            f"got {array.dtype} {list(array.shape)}"
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
