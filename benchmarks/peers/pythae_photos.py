"""Trains pythae's VAE on photographs for a number of minutes. It needs pythae installed.

    /somewhere/bin/python -m benchmarks.peers.pythae_photos IN.npz OUT.npz

IN: `train`, `validation` and `test`, float32 [n, c, h, w] in [0, 1]; `settings` as JSON: latent, minutes,
threads, seed, and conv (its network for CelebA instead of its default). OUT: `mean_<part>`
of the posteriors, float32 [n, d]; `rate` of the test images in nats [n]; `seconds` of training; and pixels
float32 [n, h, w, c] in [0, 1]: `restored` test images, `drawn_validation` and `drawn_test` from one z each,
samples of N(0, I) as `normal`, and of its mixture sampler as `mixture`, unless that cannot be fitted.
"""

import contextlib
import json
import logging
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from pythae.models import VAE, VAEConfig
from pythae.models.nn.benchmarks.celeba import Decoder_Conv_AE_CELEBA, Encoder_Conv_VAE_CELEBA
from pythae.pipelines import TrainingPipeline
from pythae.samplers import GaussianMixtureSampler
from pythae.trainers import BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor

CHUNK = 64  # images: the convolutional network takes 12 MB for each
ENDLESS = 10**9  # epochs


class TimeOver(Exception):
    """The minutes are over."""


class Clock(TrainingCallback):  # type: ignore[misc]  # pythae has no types
    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def on_epoch_end(self, training_config: Any, **more: Any) -> None:
        if time.monotonic() >= self.end:
            raise TimeOver


def trained(train: Tensor, validation: Tensor, settings: dict[str, Any]) -> VAE:
    torch.manual_seed(settings["seed"])
    shape = VAEConfig(tuple(train.shape[1:]), settings["latent"], reconstruction_loss="mse")
    networks = (Encoder_Conv_VAE_CELEBA(shape), Decoder_Conv_AE_CELEBA(shape)) if settings["conv"] else ()
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(folder, num_epochs=ENDLESS, seed=settings["seed"], no_cuda=True)
        pipeline = TrainingPipeline(VAE(shape, *networks), config)
        with contextlib.suppress(TimeOver):
            pipeline(train, validation, callbacks=[Clock(settings["minutes"])])
    return pipeline.trainer._best_model.eval()  # by validation loss, which its save_model would have kept


@torch.no_grad()
def main(source: str, target: str) -> None:
    logging.disable(logging.WARNING)
    with np.load(source) as given:
        settings = json.loads(str(given["settings"]))
        parts = {part: torch.from_numpy(given[part]) for part in ("train", "validation", "test")}
    torch.set_num_threads(settings["threads"])
    start = time.monotonic()
    with torch.enable_grad():
        model = trained(parts["train"], parts["validation"], settings)
    left: dict[str, Any] = {"seconds": time.monotonic() - start}

    def pixels(z: Tensor) -> Any:
        decoded = torch.cat([model.decoder(piece).reconstruction for piece in z.split(CHUNK)])
        return decoded.clamp(0, 1).permute(0, 2, 3, 1).numpy()

    torch.manual_seed(settings["seed"])
    for part, images in parts.items():
        outputs = [model.encoder(piece) for piece in images.split(CHUNK)]
        mean = torch.cat([output.embedding for output in outputs])
        logvar = torch.cat([output.log_covariance for output in outputs])
        left[f"mean_{part}"] = mean.numpy()
        if part != "train":
            left[f"drawn_{part}"] = pixels(mean + (0.5 * logvar).exp() * torch.randn_like(mean))
    # The last part is test.
    left["rate"] = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).double().sum(1).numpy()
    left["restored"] = pixels(mean)
    left["normal"] = pixels(torch.randn(mean.shape))
    np.random.seed(settings["seed"])  # of the sampler
    try:
        sampler = GaussianMixtureSampler(model)
        sampler.fit(parts["train"])
        samples = sampler.sample(len(mean), batch_size=CHUNK)
        left["mixture"] = samples.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    # Of scikit-learn for a component with too few images, of the sampler for images without a white pixel.
    except (ValueError, AssertionError) as error:
        print(f"pythae's mixture sampler failed: {error}", file=sys.stderr)
    np.savez(target, **left)


if __name__ == "__main__":
    main(*sys.argv[1:])
