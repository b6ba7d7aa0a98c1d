"""Runs `vae-client` in this process, and makes image files."""

import io

from PIL import Image
from typer.testing import CliRunner

from vaeserve.client.cli import app


def run(service, *arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"VAESERVE_URL": service})


def png(pixels):
    """The bytes of a PNG file of uint8 [h, w] or [h, w, 1]."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "PNG")
    return file.getvalue()
