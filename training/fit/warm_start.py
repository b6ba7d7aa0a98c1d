"""Starts a run from the weights of an earlier one, a bundle or a checkpoint, with its network."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.config import ConfigError, TrainConfig
from training.fit import checkpoint
from training.model.networks import VAE
from vaeserve.bundle.files import read_bundle
from vaeserve.bundle.manifest import Manifest

# The settings that decide the network, and how images are brought to its size.
NETWORK = (
    *("latent", "width", "activation", "linear", "image_size", "channels", "fit", "likelihood"),
    *("prior", "flow_blocks", "flow_hidden", "components"),
)


def inherit(config: TrainConfig) -> TrainConfig:
    """The config with the network of the bundle or checkpoint `config.init`, unchanged without one.

    Without KL warm-up: the latents are in use already. Raises ConfigError where the config asks for another
    network, or the path is neither.
    """
    if config.init is None:
        return config
    source, asked = _config(Path(config.init)), {}
    for name in NETWORK:
        value, given = getattr(config, name), name in config.model_fields_set
        if given and value not in (None, "auto", getattr(source, name)):
            raise ConfigError(
                f"--init {config.init} has {name} {getattr(source, name)}, not {value}: leave it out"
            )
        asked[name] = getattr(source, name)
    asked["linear"] = bool(asked["linear"])  # None: of a version that had no linear path
    return config.replace(**asked, kl_warmup=0.0)


def weights(path: Path) -> dict[str, Tensor]:
    """The averaged weights and σ² of a bundle or checkpoint, by their names in `VAE`. Raises ConfigError."""
    if _is_checkpoint(path):
        found: dict[str, Tensor] = checkpoint.read_tensors(path)["ema"]
        return found
    manifest = _manifest(path)
    found = {}
    for side in ("encoder", "decoder"):
        found |= _parameters(path / f"{side}.onnx")
    scale = manifest.likelihood.scale if manifest.likelihood else None
    if scale is not None and manifest.likelihood is not None:
        square = manifest.likelihood.kind == "gaussian"
        found["variance" if square else "log_scale"] = torch.tensor(scale**2 if square else np.log(scale))
    return found


def load(network: VAE, found: dict[str, Tensor], path: str) -> None:
    """Copy the weights into the network. Raises ConfigError if some are missing."""
    own = network.state_dict()
    if missing := sorted(own.keys() - found.keys() - {"variance"}):
        raise ConfigError(
            f"--init {path} does not contain {missing[0]}, as after quantization or with a trained prior: "
            "give the checkpoint that it was exported from"
        )
    network.load_state_dict({name: found.get(name, own[name]).to(own[name].dtype) for name in own})


def _config(path: Path) -> TrainConfig:
    if _is_checkpoint(path):
        return TrainConfig.from_dict(checkpoint.read_state(path)["config"])
    settings: dict[str, Any] = dict(training.config) if (training := _manifest(path).training) else {}
    settings.pop("step", None)
    config = TrainConfig.from_dict(settings)
    if config.image_size is None:
        raise ConfigError(
            f"--init {path} does not record how its network was built: train with its checkpoint"
        )
    return config


def _manifest(path: Path) -> Manifest:
    if not (path / "manifest.json").is_file():
        raise ConfigError(
            f"--init {path} is neither a bundle nor a checkpoint: give a folder models/<name>/<version> or "
            "runs/<run>/checkpoints/step-<n>"
        )
    return read_bundle(path).manifest


def _is_checkpoint(path: Path) -> bool:
    return (path / "state.json").is_file()


def _parameters(graph: Path) -> dict[str, Tensor]:
    """The initializers of a graph, which have the names of the parameters in torch."""
    import onnx

    return {
        each.name: torch.from_numpy(onnx.numpy_helper.to_array(each).copy())
        for each in onnx.load(graph).graph.initializer
    }
