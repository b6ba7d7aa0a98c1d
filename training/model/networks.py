"""The encoder and the decoder: a convolutional residual VAE for images of any height and width.

- Stages halve the image (rounding up) until its longer side is at most 7; the decoder mirrors them and crops.
- Networks of one or two stages have no normalisation layers: they quantize better without. Their residual
  branches start at zero (`activation: pre`, which reconstructs better), or the sum goes through an activation
  (`post`, which embeds better). Deeper networks collapse to one picture for every image without
  normalisation, so their residual blocks have GroupNorm. BatchNorm would collect its statistics on posterior
  samples and use them on prior samples.
- Nearest upsampling and a convolution avoid the checkerboard pattern of a transposed convolution.
- `width` is the one dial: channels are width, 2·width, then 4·width; the hidden layer has 8·width units.
- Of images that are nearly linear, a linear path lies beside the convolutions (training/model/linear.py).
"""

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import Activation, TrainConfig
from training.model.flow import Flow
from training.model.likelihoods import LIKELIHOODS, Likelihood
from training.model.linear import Analysis, Synthesis
from training.model.mixture import Mixture

LOGVAR_LIMIT = 10.0  # σ between 0.7 % and 148: beyond that exp() overflows or vanishes
MOST_NORM_FREE = 2  # stages
SMALLEST_SIDE = 7  # 28 → 14 → 7 and 64 → … → 4
SMALLEST_LOG_SCALE = -7.0  # PixelCNN++'s: a quarter of a grey level, below which the likelihood hardly gains


class Posterior(NamedTuple):
    """q(z|x) = N(mean, exp(logvar)), both float32 [n, d]."""

    mean: Tensor
    logvar: Tensor


@dataclasses.dataclass(frozen=True)
class Shape:
    """The dimensions that a network is built from."""

    height: int
    width: int
    channels: int
    latent: int
    base: int  # the dial: channels of the first stage
    activation: Activation = "pre"
    linear: bool = False  # networks of earlier versions have none

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width before each stage and after the last, largest first."""
        sizes = [(self.height, self.width)]
        while len(sizes) == 1 or max(sizes[-1]) > SMALLEST_SIDE:
            sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
        return tuple(sizes)

    @property
    def stages(self) -> tuple[int, ...]:
        """Channels after each stage."""
        return tuple(self.base * min(2**stage, 4) for stage in range(len(self.sizes) - 1))

    @property
    def normed(self) -> bool:
        """Whether residual blocks have GroupNorm."""
        return len(self.stages) > MOST_NORM_FREE

    @property
    def hidden(self) -> int:
        return 8 * self.base

    @property
    def features(self) -> int:
        """Size of the flattened output of the last stage."""
        height, width = self.sizes[-1]
        return self.stages[-1] * height * width


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with the last convolution at zero at the start.

    Without `normed` both norms are left out.
    """

    def __init__(self, channels: int, *, normed: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)
        self.norms = nn.ModuleList(_norm(channels) if normed else nn.Identity() for _ in range(2))
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.first(functional.silu(self.norms[0](x)))
        inner = self.last(functional.silu(self.norms[1](inner)))
        return x + inner


class PostResidual(nn.Module):
    """silu(y + conv(silu(norm(conv(norm(y)))))) with y = silu(x), after He et al. (arXiv 1512.03385).

    Without `normed` both norms are left out.
    """

    def __init__(self, channels: int, *, normed: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)
        self.norms = nn.ModuleList(_norm(channels) if normed else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.silu(x)
        inner: Tensor = self.first(self.norms[0](y))
        inner = self.last(functional.silu(self.norms[1](inner)))
        return y + inner  # what follows begins with silu


def _norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with eight channels to a group (Wu & He, arXiv 1803.08494)."""
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)


RESIDUALS: dict[Activation, type[nn.Module]] = {"pre": Residual, "post": PostResidual}


class Encoder(nn.Module):
    """Images float32 [n, c, h, w] in [0, 1] → posterior mean and logvar, float32 [n, d]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before, residual = shape.channels, RESIDUALS[shape.activation]
        for channels in shape.stages:
            block = residual(channels, normed=shape.normed)
            layers += [nn.Conv2d(before, channels, 3, stride=2, padding=1), block, nn.SiLU()]
            before = channels
        self.stages = nn.Sequential(*layers)
        self.hidden = nn.Linear(shape.features, shape.hidden)
        self.head = nn.Linear(shape.hidden, 2 * shape.latent)
        image = shape.height, shape.width, shape.channels
        self.linear = Analysis(*image, shape.latent) if shape.linear else None

    def forward(self, images: Tensor) -> Posterior:
        features = self.stages(2 * images - 1).flatten(1)  # [n, features]
        mean, logvar = self.head(functional.silu(self.hidden(features))).chunk(2, dim=1)
        if self.linear is not None:
            mean = mean + exact(self.linear, images)
        # tanh, because a clamped value has no gradient.
        return Posterior(mean, LOGVAR_LIMIT * torch.tanh(logvar / LOGVAR_LIMIT))


class Decoder(nn.Module):
    """Latents float32 [n, d] → logits float32 [n, c, h, w]; their sigmoid is the likelihood's mean."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.hidden = nn.Linear(shape.latent, shape.hidden)
        self.features = nn.Linear(shape.hidden, shape.features)
        channels = shape.stages
        residual = RESIDUALS[shape.activation]
        self.residuals = nn.ModuleList(residual(c, normed=shape.normed) for c in reversed(channels))
        after = (shape.channels, *channels[:-1])
        self.ups = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip(reversed(channels), reversed(after), strict=True)
        )
        image = shape.height, shape.width, shape.channels
        self.linear = Synthesis(*image, shape.latent) if shape.linear else None

    def forward(self, z: Tensor) -> Tensor:
        sizes = self.shape.sizes
        x: Tensor = self.features(functional.silu(self.hidden(z)))
        x = x.reshape(-1, self.shape.stages[-1], *sizes[-1])
        for residual, up, (height, width) in zip(self.residuals, self.ups, reversed(sizes[:-1]), strict=True):
            x = functional.silu(residual(x))
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")[:, :, :height, :width]
            x = up(x)
        return x if self.linear is None else x + exact(self.linear, z)


class Output(NamedTuple):
    """The forward pass of n images with k samples of each posterior; the samples of an image are adjacent.

    Decoder logits [n·k, c, h, w]; the posterior [n, d]; its samples z [n·k, d]; log p(z) [n·k] in nats under
    a trained prior, None under N(0, I); the learned scale of the likelihood [], None where there is none.
    """

    logits: Tensor
    posterior: Posterior
    z: Tensor
    log_prior: Tensor | None = None
    scale: Tensor | None = None

    def float(self) -> "Output":
        """The same in float32, whatever the networks computed in."""
        mean, logvar = self.posterior
        posterior = Posterior(mean.float(), logvar.float())
        return self._replace(logits=self.logits.float(), posterior=posterior, z=self.z.float())


class VAE(nn.Module):
    """Encoder, decoder, likelihood, and the prior if it is trained too.

    The encoder maps images to a `Posterior`, the decoder maps latents to logits. `variance` is the running
    mean squared error that sets a Gaussian's σ, 1 until trained. `log_scale` is the learned scale of a
    likelihood that has one.
    """

    variance: Tensor
    log_scale: nn.Parameter | None

    def __init__(
        self,
        shape: Shape,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: Flow | Mixture | None = None,
        likelihood: Likelihood = LIKELIHOODS["gaussian"],
    ) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.likelihood = likelihood
        self.register_buffer("variance", torch.ones(()))
        first = likelihood.first_scale
        self.register_parameter(
            "log_scale", None if first is None else nn.Parameter(torch.tensor(math.log(first)))
        )

    @property
    def flow(self) -> Flow | None:
        """The prior if it is a flow, which is exported with the model."""
        return self.prior if isinstance(self.prior, Flow) else None

    @property
    def scale(self) -> Tensor | None:
        """The learned scale on [0, 1]; None for a likelihood without one."""
        return None if self.log_scale is None else self.log_scale.clamp(min=SMALLEST_LOG_SCALE).exp()

    def forward(self, images: Tensor, eps: Tensor) -> Output:
        """Encode, sample and decode images [n, c, h, w] in [0, 1] with normal noise [n, d] or [n, k, d]."""
        posterior: Posterior = self.encoder(images)
        z = reparameterise(posterior, eps)
        log_prior = None
        if self.prior is not None:  # bfloat16 is too coarse for its sums of logarithms
            with torch.autocast(z.device.type, enabled=False):
                log_prior = self.prior.log_density(z.float())
        return Output(self.decoder(z), posterior, z, log_prior, self.scale)


def exact(module: nn.Module, x: Tensor) -> Tensor:
    """The module in float32 under autocast: the mean image alone has more digits than bfloat16."""
    if not torch.is_autocast_enabled(x.device.type):
        return module(x)  # type: ignore[no-any-return]
    with torch.autocast(x.device.type, enabled=False):
        return module(x.float())  # type: ignore[no-any-return]


def as_pixels(images: Tensor) -> Tensor:
    """What the encoder takes, float32 [n, c, h, w] in [0, 1], of images uint8 [n, h, w, c]."""
    return images.permute(0, 3, 1, 2).to(torch.float32) / 255


def reparameterise(posterior: Posterior, eps: Tensor) -> Tensor:
    """z = mean + σ·eps, through which gradients reach mean and σ (Kingma & Welling, arXiv 1312.6114).

    [n, d] for noise [n, d], and [n·k, d] for noise [n, k, d].
    """
    mean, deviation = posterior.mean, torch.exp(0.5 * posterior.logvar)
    if eps.ndim > mean.ndim:
        return (mean[:, None] + deviation[:, None] * eps).flatten(0, 1)
    return mean + deviation * eps


def build(config: TrainConfig) -> VAE:
    """Build the network of a resolved config on the CPU, with weights that depend on its seed alone."""
    if config.image_size is None or config.channels is None or config.latent is None:
        raise ValueError("the config has no image size; resolve it first")
    shape = Shape(
        *config.image_size,
        config.channels,
        config.latent,
        config.width,
        config.activation,
        bool(config.linear),
    )
    likelihood = LIKELIHOODS["gaussian" if config.likelihood == "auto" else config.likelihood]
    with torch.random.fork_rng(devices=[]):  # leaves the caller's generator as it was
        torch.manual_seed(config.seed)
        encoder, decoder = Encoder(shape), Decoder(shape)
        prior: Flow | Mixture | None = None  # last, so that the other weights are the same without it
        if config.prior == "flow":
            prior = Flow(shape.latent, config.flow_blocks, config.flow_hidden)
        elif config.prior == "mixture":
            prior = Mixture(shape.latent, config.components)
        return VAE(shape, encoder, decoder, prior, likelihood)
