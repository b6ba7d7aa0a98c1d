"""The lines that `vae-serve` prints once it is ready."""

from importlib.metadata import version

from service.core.models import Models
from service.settings import MIB, Settings


def banner(settings: Settings, models: Models, url: str) -> str:
    """The URL, the models, the limits, and a command to try."""
    lines = [f"vaeserve {version('vaeserve')} at {url}, documentation at {url}/docs"]
    for model in models.newest():
        manifest = model.manifest
        image = f"{manifest.image.height}×{manifest.image.width}×{manifest.image.channels}"
        latent = "×".join(map(str, manifest.latent.shape))
        default = ", the default" if manifest.name == models.default else ""
        lines.append(f"  {manifest.reference}: images {image}, latents {latent}{default}")
    processes = f"{settings.processes()} processes of " if settings.processes() > 1 else ""
    threads = settings.model_threads()
    lines += [
        f"  {processes}{threads} model thread{'s' * (threads > 1)}; limits of a request: "
        f"{settings.max_body / MIB:g} MiB, {settings.max_images} images, {settings.max_samples} samples, "
        f"{settings.max_pixels / 1e6:.3g} megapixels an image",
    ]
    if models.refused:
        lines.append(f"  {len(models.refused)} bundle(s) refused; see the log")
    model_parameter = "" if models.default else f"&model={models.newest()[0].manifest.name}"
    lines.append(f"  curl '{url}/sample?n=64&seed=7{model_parameter}' -H 'Accept: image/png' -o grid.png")
    return "\n".join(lines)
