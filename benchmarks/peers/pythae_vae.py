"""Trains pythae's VAE and fits its mixture sampler on images in a file. It needs pythae installed.

    /somewhere/bin/python -m benchmarks.peers.pythae_vae IN.npz OUT.pt

IN: `train` and `validation`, float32 [n, c, h, w] in [0, 1]; `config`, the TrainConfig that says network,
epochs and seed, as JSON; `settings`, of BaseTrainerConfig, as JSON; `count`, of samples to draw. OUT: the
trained weights under `encoder` and `decoder`, and `samples`, float32 [count, c, h, w].
"""

import json
import logging
import sys
import tempfile
from typing import Any

import numpy as np
import torch
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.pipelines import TrainingPipeline
from pythae.samplers import GaussianMixtureSampler
from pythae.trainers import BaseTrainerConfig

from training.config import TrainConfig
from training.model import networks


class Encoder(BaseEncoder):  # type: ignore[misc]  # pythae has no types
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any) -> Any:
        mean, logvar = self.network(x)
        return ModelOutput(embedding=mean, log_covariance=logvar)


class Decoder(BaseDecoder):  # type: ignore[misc]
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Any) -> Any:
        return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))


def main(source: str, target: str) -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with np.load(source) as given:
        train, validation = (torch.from_numpy(given[part]) for part in ("train", "validation"))
        config = TrainConfig.from_json(str(given["config"]))
        settings, count = json.loads(str(given["settings"])), int(given["count"])
    network = networks.build(config)
    shape = VAEConfig(input_dim=tuple(train.shape[1:]), latent_dim=config.latent)
    model = VAE(shape, Encoder(network.encoder), Decoder(network.decoder))
    with tempfile.TemporaryDirectory() as folder:
        trainer = BaseTrainerConfig(
            output_dir=folder, num_epochs=config.epochs, seed=config.seed, no_cuda=True, **settings
        )
        pipeline = TrainingPipeline(model=model, training_config=trainer)
        pipeline(train, validation)
    model = pipeline.trainer._best_model.eval()  # by validation loss, which its save_model would have kept
    sampler = GaussianMixtureSampler(model)
    sampler.fit(train)
    left = {"encoder": model.encoder.network.state_dict(), "decoder": model.decoder.network.state_dict()}
    torch.save(left | {"samples": sampler.sample(count)}, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
