"""The command `vae-serve`, as a process of its own."""

import contextlib
import os
import signal
import socket
import subprocess

import httpx
import pytest

from service.__main__ import check
from tests.bundles import make_bundle
from tests.live import VAE_SERVE, until_ready

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("VAESERVE_")}


def run(*arguments):
    """A run that is expected to end by itself."""
    return subprocess.run(
        [VAE_SERVE, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )


@contextlib.contextmanager
def started(folder, *arguments, **environment):
    """A running `vae-serve`, its URL, and the file that its output goes to."""
    output = folder / "output"
    with (
        output.open("wb") as file,
        subprocess.Popen(
            [VAE_SERVE, *map(str, arguments)],
            cwd=folder,
            env=ENVIRONMENT | {"VAESERVE_DRAIN_SECONDS": "0"} | environment,
            stdout=file,
            stderr=file,
        ) as process,
    ):
        try:
            yield process, output
        finally:
            process.kill()


def test_serves_until_sigterm_and_says_what_and_where(repository, tmp_path, free_port):
    url = f"http://127.0.0.1:{free_port}"
    # One process, which is ready when it has said so.
    where = {"VAESERVE_MODELS": str(repository), "VAESERVE_PORT": str(free_port), "VAESERVE_WORKERS": "1"}
    with started(tmp_path, "--access-log", **where) as (process, output):
        until_ready(f"{url}/readyz", process)
        answer = httpx.get(f"{url}/sample?n=4&model=tiny", headers={"Accept": "image/png"})
        assert answer.content.startswith(b"\x89PNG")
        assert "server" not in answer.headers
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        said = output.read_text()
    assert f"vaeserve 0.1.0 at {url}, documentation at {url}/docs" in said
    assert "colour@1: images 12×10×3, latents 2×3×4" in said
    assert "tiny@2: images 8×8×1, latents 4" in said
    assert f"curl '{url}/sample?n=64&seed=7&model=colour'" in said
    assert "GET /sample 200" in said
    assert "Traceback" not in said


def test_ctrl_c_is_no_error(repository, tmp_path, free_port):
    with started(tmp_path, "--models", repository, "--port", free_port) as (process, output):
        until_ready(f"http://127.0.0.1:{free_port}/readyz", process)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "Traceback" not in output.read_text()


def test_worker_processes_serve_with_the_same_settings(repository, tmp_path, free_port):
    url = f"http://127.0.0.1:{free_port}"
    flags = ["--models", repository, "--port", free_port, "--workers", 2, "--max-samples", 5]
    with started(tmp_path, *flags) as (process, output):
        until_ready(f"{url}/readyz", process)
        for _ in range(10):
            answer = httpx.get(f"{url}/sample?n=6&model=tiny")
            if answer.status_code != 503:  # the other worker may still be loading
                assert answer.status_code == 413
                assert "than the 5" in answer.json()["detail"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        said = output.read_text()
    assert "2 processes of 1 model thread" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_to_serve_is_said_in_one_sentence(tmp_path, free_port, workers):
    ended = run("--models", tmp_path, "--port", free_port, "--workers", workers)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"vae-serve: {tmp_path} holds no model; train one with `vae-train fit`, "
        "or name another folder with --models"
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_provider_that_is_not_there_is_said_in_one_sentence(repository, free_port, workers):
    ended = run("--models", repository, "--port", free_port, "--provider", "cuda", "--workers", workers)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "vae-serve: cuda was asked for" in line
    assert "install onnxruntime-gpu in its place, or leave out --provider" in line


def test_the_reason_of_a_single_bad_bundle_is_said(tmp_path, free_port):
    bundle = make_bundle(tmp_path)
    (bundle / "golden.npz").write_bytes(b"")
    ended = run("--models", tmp_path, "--port", free_port)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"vae-serve: no model can be served: {bundle}/golden.npz has 0 bytes")


def test_a_port_in_use_is_said_in_one_sentence(repository):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run("--models", repository, "--port", port)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"vae-serve: cannot listen on 127.0.0.1:{port} (Address already in use); "
        "stop what is there, or choose another --port"
    ]


def test_a_host_that_is_none_is_said_in_one_sentence(repository):
    ended = run("--models", repository, "--host", "no.such.host.invalid")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "cannot listen on no.such.host.invalid:8000" in line


def test_version():
    assert run("--version").stdout == "vaeserve 0.1.0\n"


def test_check(repository, tmp_path):
    ended = run("check", repository)
    assert ended.returncode == 0
    assert [line.split()[:2] for line in ended.stdout.splitlines()] == [
        ["good", "colour@1"],
        ["good", "tiny@1"],
        ["good", "tiny@2"],
    ]
    assert run("check", repository / "tiny/1").stdout.startswith("good  tiny@1")

    good, bad = make_bundle(tmp_path), make_bundle(tmp_path)
    data = bytearray((bad / "encoder.onnx").read_bytes())
    data[-1] ^= 1
    (bad / "encoder.onnx").write_bytes(data)
    ended = run("check", tmp_path)
    assert ended.returncode == 1
    first, second = ended.stdout.splitlines()
    assert first.split() == ["good", "tiny@1", str(good)]
    assert second.startswith(f"bad   {bad}/encoder.onnx has another SHA-256")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing graph", "decoder.onnx"),
        ("no graph", "decoder.onnx"),
        ("newer format", "made by a newer vaeserve"),
        ("no manifest that can be read", "manifest.json"),
        ("another place", "says it is tiny@1; put it at tiny/1"),
    ],
)
def test_check_says_what_is_wrong(damage, said, tmp_path, capsys):
    bundle = make_bundle(tmp_path)
    manifest = bundle / "manifest.json"
    match damage:
        case "missing graph":
            (bundle / "decoder.onnx").unlink()
        case "no graph":
            (bundle / "decoder.onnx").write_bytes(b"torn")
        case "newer format":
            manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
        case "no manifest that can be read":
            manifest.write_text("{")
        case "another place":
            bundle.parent.rename(tmp_path / "other")
    assert check([str(tmp_path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("bad   ")
    assert said in line


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_check_of_nothing(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    ended = run("check", tmp_path / folder)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
