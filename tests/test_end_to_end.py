"""The whole path as a user walks it, by the commands, over a real socket: train, serve, call, train again."""

import io
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.live import VAE_SERVE, free_port, serving

VAE_TRAIN = Path(sys.executable).with_name("vae-train")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A repository with digits@1 and digits@2, each from a run of `vae-train fit`."""
    folder = tmp_path_factory.mktemp("user")
    for seed in ("0", "1"):
        quick = [
            "--epochs",
            "4",
            "--width",
            "8",
            "--latent",
            "6",
            "--seed",
            seed,
            "--run",
            folder / f"run-{seed}",
        ]
        done = subprocess.run(
            [VAE_TRAIN, "fit", *quick], cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert "next:\n  vae-serve --models models --default-model digits" in done.stderr
    return folder / "models"


def pixels(content: bytes):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def test_what_was_trained_last_is_served_and_the_four_agree(models):
    with serving(models) as url, httpx.Client(base_url=url) as http:
        png = {"Accept": "image/png"}
        grid = http.get("/sample?n=64&seed=7", headers=png)
        assert grid.headers["X-Model"] == "digits@2"
        assert pixels(grid.content).shape == (82, 82)

        digit = http.get("/sample?n=1&seed=7", headers=png).content
        np.testing.assert_array_equal(pixels(digit), pixels(grid.content)[2:10, 2:10])

        sent = {"content": digit, "headers": {"Content-Type": "image/png"}}
        mean = http.post("/encode", **sent).json()["mean"]
        assert np.shape(mean) == (1, 6)
        assert np.isfinite(mean).all()
        reconstruction = http.post(
            "/reconstruct", content=digit, headers={"Content-Type": "image/png"} | png
        ).content
        decoded = http.post("/decode", json={"latents": mean}, headers=png).content
        assert np.abs(pixels(decoded).astype(int) - pixels(reconstruction)).max() <= 1
        assert http.post("/reconstruct", **sent).json()["error"][0] < 0.1


def test_a_tampered_version_is_refused_and_the_one_before_serves(models, tmp_path):
    repository = tmp_path / "models"
    subprocess.run(["cp", "-r", models, repository], check=True)
    graph = repository / "digits/2/decoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with serving(repository) as url:
        assert httpx.get(f"{url}/sample").headers["X-Model"] == "digits@1"
        (reason,) = httpx.get(f"{url}/models").json()["refused"].values()
        assert "restore the file or publish a new version" in reason
    checked = subprocess.run([VAE_SERVE, "check", repository], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 1
    assert "good  digits@1" in checked.stdout
    assert "bad   " in checked.stdout


def test_with_nothing_good_left_the_service_ends_with_a_sentence(models, tmp_path):
    torn = tmp_path / "2"
    subprocess.run(["cp", "-r", models / "digits/2", torn], check=True)
    (torn / "golden.npz").write_bytes((torn / "golden.npz").read_bytes()[:100])
    command = [VAE_SERVE, "--models", torn, "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "golden.npz has 100 bytes where the manifest says" in done.stderr
