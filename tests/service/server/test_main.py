"""The command `vae-serve`, run as a process."""

import signal
import socket

import httpx
import pytest

from service.__main__ import check
from tests.bundles import make_bundle
from tests.live import run, running


def test_serves_until_sigterm_and_prints_a_banner(repository, tmp_path):
    log = tmp_path / "log"
    # With one process the banner is printed before /readyz answers 200.
    with running(repository, "--access-log", log=log, cwd=tmp_path, VAESERVE_WORKERS="1") as (process, url):
        answer = httpx.get(f"{url}/sample?n=4&model=tiny", headers={"Accept": "image/png"})
        assert answer.content.startswith(b"\x89PNG")
        assert "server" not in answer.headers
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        said = log.read_text()
    assert f"vaeserve 0.1.0 at {url}, documentation at {url}/docs" in said
    assert "colour@1: images 12×10×3, latents 2×3×4" in said
    assert "tiny@2: images 8×8×1, latents 4" in said
    assert f"curl '{url}/sample?n=64&seed=7&model=colour'" in said
    assert "GET /sample 200" in said
    assert "Traceback" not in said


def test_ctrl_c_exits_with_status_0(repository, tmp_path):
    with running(repository, log=tmp_path / "log") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "Traceback" not in (tmp_path / "log").read_text()


def test_workers_share_the_settings(repository, tmp_path):
    log = tmp_path / "log"
    with running(repository, "--workers", "2", "--max-samples", "5", log=log) as (process, url):
        for _ in range(10):
            answer = httpx.get(f"{url}/sample?n=6&model=tiny")
            if answer.status_code != 503:  # the other worker may still be loading
                assert answer.status_code == 413
                assert "than the 5" in answer.json()["detail"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        said = log.read_text()
    assert "2 processes of 1 model thread" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("workers", [1, 2])
def test_a_repository_without_models_is_an_error_of_one_line(tmp_path, free_port, workers):
    ended = run("--models", tmp_path, "--port", free_port, "--workers", workers)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"vae-serve: {tmp_path} holds no model; train one with `vae-train fit`, "
        "or name another folder with --models"
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_missing_provider_is_an_error_of_one_line(repository, free_port, workers):
    ended = run("--models", repository, "--port", free_port, "--provider", "cuda", "--workers", workers)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "vae-serve: provider cuda needs CUDAExecutionProvider" in line
    assert "install onnxruntime-gpu in its place, or leave out --provider" in line


def test_the_error_of_the_only_bundle_is_printed(tmp_path, free_port):
    bundle = make_bundle(tmp_path)
    (bundle / "golden.npz").write_bytes(b"")
    ended = run("--models", tmp_path, "--port", free_port)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"vae-serve: no model can be served: {bundle}/golden.npz has 0 bytes")


def test_a_port_in_use_is_an_error_of_one_line(repository):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run("--models", repository, "--port", port)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"vae-serve: cannot listen on 127.0.0.1:{port} (Address already in use); "
        "stop the program that uses it, or choose another --port"
    ]


def test_an_unknown_host_is_an_error_of_one_line(repository):
    ended = run("--models", repository, "--host", "no.such.host.invalid")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "cannot listen on no.such.host.invalid:8000" in line


def test_version_is_printed():
    assert run("--version").stdout == "vaeserve 0.1.0\n"


def test_check_prints_one_line_for_each_bundle(repository, tmp_path):
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
    assert second.startswith(f"bad   {bad}/encoder.onnx does not match the SHA-256")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing graph", "decoder.onnx"),
        ("broken graph", "decoder.onnx"),
        ("newer format", "made by a newer vaeserve"),
        ("broken manifest", "manifest.json"),
        ("wrong folder", "says it is tiny@1; put it at tiny/1"),
    ],
)
def test_check_names_the_damage(damage, said, tmp_path, capsys):
    bundle = make_bundle(tmp_path)
    manifest = bundle / "manifest.json"
    match damage:
        case "missing graph":
            (bundle / "decoder.onnx").unlink()
        case "broken graph":
            (bundle / "decoder.onnx").write_bytes(b"torn")
        case "newer format":
            manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
        case "broken manifest":
            manifest.write_text("{")
        case "wrong folder":
            bundle.parent.rename(tmp_path / "other")
    assert check([str(tmp_path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("bad   ")
    assert said in line


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_check_fails_if_there_is_no_bundle(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    ended = run("check", tmp_path / folder)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
