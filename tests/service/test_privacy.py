"""Images are neither stored nor logged: every route, every kind of body, right and wrong, at debug level."""

import base64
import io
import os
import signal
import subprocess

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.live import VAE_SERVE, until_ready
from tests.service.http.test_routes import npy

MARK = "Tr0ub4dor"  # in metadata, file names, field names: wherever a client may write something
SEED = 424_242_424_242
LATENT = 0.123456789


def marked_png(side):
    """An image with the mark in its metadata; noise, so that its bytes are recognised wherever they are."""
    text = PngInfo()
    text.add_text("Comment", MARK)
    file = io.BytesIO()
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG", pnginfo=text)
    return file.getvalue()


def requests(small, large):
    """(route, arguments of httpx.post) of every kind of request, good and bad."""
    accepts = ("application/json", "application/x-npy", "application/x-npz", "image/png", "image/jpeg")
    for file in (small, large, small[:-20], large[:-20], MARK.encode()):
        text = base64.b64encode(file).decode()
        named = ("images", (f"{MARK}.png", file, "image/png"))
        for route in ("/encode", "/reconstruct"):
            for accept in accepts:
                headers = {"Accept": accept}
                yield route, {"content": file, "headers": headers | {"Content-Type": "image/png"}}
                yield route, {"files": [named] * 2, "headers": headers}
                yield route, {"json": {"images": [text, text], "seed": SEED}, "headers": headers}
            yield f"{route}?seed={SEED}", {"files": [named], "data": {MARK: MARK}}
            yield route, {"json": {"images": [text], MARK: MARK}}
            yield route, {"content": file, "headers": {"Content-Type": "application/json"}}
            yield route, {"content": file, "headers": {"Content-Type": "application/x-npy"}}
            yield route, {"content": file, "headers": {"Content-Type": "multipart/form-data; boundary=B"}}
    latents = np.full((2, 4), LATENT, np.float32)
    for accept in accepts:
        headers = {"Accept": accept}
        yield "/decode", {"json": {"latents": latents.tolist()}, "headers": headers}
        yield "/decode", {"content": npy(latents), "headers": headers | {"Content-Type": "application/x-npy"}}
        yield "/sample", {"json": {"n": 2, "seed": SEED, "return": ["latents"]}, "headers": headers}
    yield "/decode", {"json": {"latents": [[LATENT, MARK]]}}
    yield "/decode", {"json": {"latents": [[LATENT]]}}
    yield "/sample", {"json": {"seed": MARK}}


def files_below(*folders):
    return {
        (str(path), path.stat().st_size)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.name != "output"
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="looks at files as POSIX has them")
def test_nothing_of_an_image_is_in_the_log_or_on_the_disk(repository, tmp_path, free_port):
    small, large = marked_png(16), marked_png(900)  # decoded on the event loop; in the pool, and above 1 MiB
    assert len(large) > 2 << 20
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VAESERVE_")}
    environment |= {"TMPDIR": str(temporary), "HOME": str(home)}
    flags = ["--port", str(free_port), "--log-level", "debug", "--default-model", "tiny"]
    command = [VAE_SERVE, "--access-log", "--models", repository, *flags]
    url = f"http://127.0.0.1:{free_port}"
    before = files_below(tmp_path, repository)
    output = tmp_path / "output"
    statuses = set()
    with (
        output.open("wb") as file,
        subprocess.Popen(command, cwd=home, env=environment, stdout=file, stderr=file) as process,
    ):
        try:
            until_ready(f"{url}/readyz", process)
            with httpx.Client(base_url=url, timeout=30) as http:
                for route, arguments in requests(small, large):
                    statuses.add(http.post(route, **arguments).status_code)
            if os.path.isdir(descriptors := f"/proc/{process.pid}/fd"):  # a file that is open and has no name
                opened = [os.readlink(f"{descriptors}/{each}") for each in os.listdir(descriptors)]
                assert [name for name in opened if "deleted" in name] == []
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    assert statuses == {200, 406, 422}
    assert files_below(tmp_path, repository) == before
    log = output.read_text(errors="replace")
    assert "POST /encode 200" in log
    assert "DEBUG" in log
    needles = [MARK, str(SEED), str(LATENT)[:6]]
    for image in (small, large):
        text = base64.b64encode(image).decode()
        needles += [text[at : at + 24] for at in range(0, len(text) - 24, max(1, len(text) // 50))]
        needles += [
            repr(image[at : at + 8])[2:-1] for at in range(0, len(image) - 8, max(1, len(image) // 50))
        ]
    assert [needle for needle in needles if needle in log] == []
