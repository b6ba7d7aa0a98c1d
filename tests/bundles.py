"""Small real bundles for tests: ONNX graphs made with the onnx helper, no torch, golden vectors computed.

The encoder is linear and the decoder a sigmoid of a linear map, with seeded weights: everything that a
trained model's graphs have in common (names, types, layout, rounding) and nothing that takes time.
"""

import math
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vaeserve.bundle.calibration import calibrate
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import Draft, Golden, publish
from vaeserve.bundle.latent_map import LatentMap
from vaeserve.bundle.likelihood import Gaussian
from vaeserve.bundle.local_error import usual_error
from vaeserve.bundle.manifest import ImageSpec, LatentSpec, Manifest, PriorSpec
from vaeserve.bundle.noise import noise
from vaeserve.bundle.scores import score

OPSET = 18


def make_draft(
    folder: Path,
    name: str = "tiny",
    height: int = 8,
    width: int = 8,
    channels: int = 1,
    latent: tuple[int, ...] = (4,),
    seed: int = 0,
    held_out: int = 40,
) -> Draft:
    """A complete draft in `folder`: graphs, golden vectors, manifest, and what `with_held_out` adds."""
    image = (height, width, channels)
    encoder, decoder = encoder_graph(image, latent, seed), decoder_graph(image, latent, seed)
    (folder / "encoder.onnx").write_bytes(encoder)
    (folder / "decoder.onnx").write_bytes(decoder)
    inputs = np.random.default_rng(seed).integers(0, 256, (4, *image), dtype=np.uint8)
    mean, logvar = ort.InferenceSession(encoder).run(["mean", "logvar"], {"image": inputs})
    decoded, pixels = ort.InferenceSession(decoder).run(["image", "pixels"], {"z": mean})
    Golden(inputs, mean, logvar, decoded, pixels).save(folder / "golden.npz")
    manifest = Manifest(
        name=name,
        version=1,
        created=datetime.now(UTC),
        image=ImageSpec(height=height, width=width, channels=channels),
        latent=LatentSpec(shape=latent),
        likelihood=Gaussian(scale=0.1),
    )
    draft = Draft(folder, manifest)
    return with_held_out(draft, held_out, seed) if held_out else draft


def with_held_out(draft: Draft, n: int, seed: int = 0) -> Draft:
    """The draft with calibration, map, labels and KL of `n` random images, in colour with local scores."""
    engine, folder = Engine(draft.bundle()), draft.folder
    spec, rng = draft.manifest.image, np.random.default_rng((seed, 3))
    images = rng.integers(0, 256, (n, *spec.shape), dtype=np.uint8)
    posterior = engine.encode(images)
    pixels, mean = engine.pixels(posterior.sample(seed)), posterior.mean
    log_prior = engine.prior.log_density(mean)
    decoded = engine.decode(mean)
    usual = usual_error(images, decoded, images, decoded) if spec.channels == 3 else None
    local = usual.local(images, decoded) if usual else None
    found = score(draft.manifest, images, posterior, pixels, decoded, log_prior, local)
    np.savez_compressed(folder / "calibration.npz", **calibrate(found, usual).arrays())
    flat = mean.reshape(n, -1)
    centre = flat.mean(axis=0)
    _, deviations, directions = np.linalg.svd(flat - centre, full_matrices=False)
    shares, missing = deviations[:2] ** 2 / (deviations**2).sum(), max(0, 2 - len(directions))
    components = np.pad(directions[:2], ((0, missing), (0, 0)))  # a latent space may have one dimension
    plane = LatentMap(
        mean=centre,
        components=components,
        variance=np.pad(shares, (0, missing)),
        points=(flat - centre) @ components.T,
        labels=rng.integers(0, 2, n).astype(np.int16),
        latents=mean,
        thumbnails=images,
    )
    np.savez_compressed(folder / "map.npz", **plane._asdict())
    latent = LatentSpec(shape=mean.shape[1:], kl=posterior.kl().mean(axis=0).ravel().tolist())
    added = {"calibration": "calibration.npz", "map": "map.npz", "labels": ("a", "b"), "latent": latent}
    return Draft(folder, draft.manifest.model_copy(update=added))


def make_bundle(
    repository: Path,
    name: str = "tiny",
    height: int = 8,
    width: int = 8,
    channels: int = 1,
    latent: tuple[int, ...] = (4,),
    seed: int = 0,
    held_out: int = 40,
) -> Path:
    """Publish such a bundle as the next version of `name`; returns its folder."""
    with TemporaryDirectory() as folder:
        return publish(
            repository, name, make_draft(Path(folder), name, height, width, channels, latent, seed, held_out)
        )


def encoder_graph(image: tuple[int, int, int], latent: tuple[int, ...], seed: int = 0) -> bytes:
    pixels, size = math.prod(image), math.prod(latent)
    rng = np.random.default_rng((seed, 1))
    weights = {
        "scale": np.float32(1 / 255),
        "flat": np.array([-1, pixels], np.int64),
        "out": np.array([-1, *latent], np.int64),
        "w_mean": _weights(rng, pixels, size),
        "w_logvar": _weights(rng, pixels, size) * np.float32(0.1),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["unit"]),
        helper.make_node("Reshape", ["unit", "flat"], ["x"]),
        helper.make_node("MatMul", ["x", "w_mean"], ["m"]),
        helper.make_node("Reshape", ["m", "out"], ["mean"]),
        helper.make_node("MatMul", ["x", "w_logvar"], ["v"]),
        helper.make_node("Reshape", ["v", "out"], ["logvar"]),
    ]
    return _graph(
        nodes,
        weights,
        inputs=[("image", TensorProto.UINT8, image)],
        outputs=[("mean", TensorProto.FLOAT, latent), ("logvar", TensorProto.FLOAT, latent)],
    )


def decoder_graph(image: tuple[int, int, int], latent: tuple[int, ...], seed: int = 0) -> bytes:
    pixels, size = math.prod(image), math.prod(latent)
    weights = {
        "full": np.float32(255),
        "flat": np.array([-1, size], np.int64),
        "out": np.array([-1, *image], np.int64),
        "w": _weights(np.random.default_rng((seed, 2)), size, pixels) * np.float32(4),
    }
    nodes = [
        helper.make_node("Reshape", ["z", "flat"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["p"]),
        helper.make_node("Reshape", ["p", "out"], ["pixels"]),
        helper.make_node("Mul", ["pixels", "full"], ["levels"]),
        helper.make_node("Round", ["levels"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["image"], to=TensorProto.UINT8),
    ]
    return _graph(
        nodes,
        weights,
        inputs=[("z", TensorProto.FLOAT, latent)],
        outputs=[("image", TensorProto.UINT8, image), ("pixels", TensorProto.FLOAT, image)],
    )


def _weights(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    return (rng.standard_normal((rows, columns)) / math.sqrt(rows)).astype(np.float32)


def _graph(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    inputs: list[tuple[str, int, tuple[int, ...]]],
    outputs: list[tuple[str, int, tuple[int, ...]]],
) -> bytes:
    def values(side: list[tuple[str, int, tuple[int, ...]]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, kind, ["n", *shape]) for name, kind, shape in side]

    graph = helper.make_graph(
        nodes,
        "tiny",
        values(inputs),
        values(outputs),
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def with_flow(draft: Draft, density: bool = True) -> Draft:
    """The draft with a flow for its prior: z = 2·eps + 1, whose density (density.onnx) is N(1, 4)."""
    latent, folder = draft.manifest.latent.shape, draft.folder
    (folder / "prior.onnx").write_bytes(flow_graph(latent))
    eps = noise(0, range(4), latent)
    golden = draft.bundle().golden()._replace(eps=eps, z=2 * eps + 1)
    if density:
        (folder / "density.onnx").write_bytes(density_graph(latent))
        nats = -0.5 * np.square(eps.astype(np.float64)) - 0.5 * math.log(2 * math.pi) - math.log(2)
        nats = nats.reshape(len(eps), -1).sum(axis=1)
        golden = golden._replace(log_density=nats.astype(np.float32))
    golden.save(folder / "golden.npz")
    prior = PriorSpec(kind="flow", file="prior.onnx")
    return Draft(folder, draft.manifest.model_copy(update={"prior": prior}))


def flow_graph(latent: tuple[int, ...]) -> bytes:
    nodes = [
        helper.make_node("Mul", ["eps", "two"], ["wide"]),
        helper.make_node("Add", ["wide", "one"], ["z"]),
    ]
    return _graph(
        nodes,
        {"two": np.float32(2), "one": np.float32(1)},
        inputs=[("eps", TensorProto.FLOAT, latent)],
        outputs=[("z", TensorProto.FLOAT, latent)],
    )


def density_graph(latent: tuple[int, ...]) -> bytes:
    size = math.prod(latent)
    weights = {
        "one": np.float32(1),
        "half": np.float32(0.5),
        "minus": np.float32(-0.5),
        "constant": np.float32(-size * (0.5 * math.log(2 * math.pi) + math.log(2))),
        "flat": np.array([-1, size], np.int64),
        "axes": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Sub", ["z", "one"], ["centred"]),
        helper.make_node("Mul", ["centred", "half"], ["eps"]),
        helper.make_node("Mul", ["eps", "eps"], ["squares"]),
        helper.make_node("Reshape", ["squares", "flat"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axes"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "minus"], ["exponent"]),
        helper.make_node("Add", ["exponent", "constant"], ["log_density"]),
    ]
    return _graph(
        nodes,
        weights,
        inputs=[("z", TensorProto.FLOAT, latent)],
        outputs=[("eps", TensorProto.FLOAT, latent), ("log_density", TensorProto.FLOAT, ())],
    )
