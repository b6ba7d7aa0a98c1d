"""The commands of `vae-client` against a live service."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from PIL import Image

from tests.client.commands import run
from vaeserve import Client
from vaeserve.client.bulk.runner import prefetch
from vaeserve.client.errors import ClientError

rng = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for index in range(40):  # more than one request
        pixels = rng.integers(0, 256, (10, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / ("deep" if index % 2 else "") / f"{index:02d}.png")
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    return tmp_path / "photos"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_encode_a_folder_keeps_the_order(service, folder, tmp_path, client):
    output = tmp_path / "embeddings.npz"
    result = run(service, "encode", folder, "-o", output, "--concurrency", 3)
    assert result.exit_code == 0, result.output
    with np.load(output) as archive:
        paths, mean = archive["path"], archive["mean"]
        assert str(archive["model"]) == "tiny@1"
        assert archive["logvar"].shape == (40, 4)
    assert list(paths) == sorted(paths)
    assert len(paths) == 40
    np.testing.assert_allclose(client.encode(paths[33]).mean[0], mean[33], atol=1e-5)


def test_a_broken_file_is_reported_last_and_does_not_affect_the_others(service, folder, tmp_path):
    (folder / "05b.png").write_bytes(b"broken")
    output = tmp_path / "embeddings.npz"
    result = run(service, "encode", folder, "-o", output)
    assert result.exit_code == 3
    assert "40 of 41 images" in result.output
    assert result.output.strip().splitlines()[-1].startswith(f"failed: {folder / '05b.png'}: ")
    assert len(np.load(output)["path"]) == 40


def test_sample_with_a_seed_writes_the_same_contact_sheet(service, tmp_path):
    for name in ("a.png", "b.png"):
        assert run(service, "sample", "-n", 9, "--seed", 7, "-o", tmp_path / name).exit_code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert pixels(tmp_path / "a.png").shape == (32, 32)
    assert run(service, "sample", "-n", 9, "--seed", 7, "-o", tmp_path / "a.npy").exit_code == 0
    assert np.load(tmp_path / "a.npy").shape == (9, 8, 8, 1)


def test_more_latents_than_one_request_takes_are_decoded_in_order(service, tmp_path, client):
    latents = rng.standard_normal((300, 4)).astype(np.float32)
    np.save(tmp_path / "latents.npy", latents)
    output = tmp_path / "images.npy"
    result = run(service, "decode", tmp_path / "latents.npy", "-o", output, "--concurrency", 3)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(np.load(output), client.decode(latents))
    sheet = run(service, "decode", tmp_path / "latents.npy", "-o", tmp_path / "images.png")
    assert sheet.exit_code == 0, sheet.output
    assert pixels(tmp_path / "images.png").shape == (17 * 10 + 2, 18 * 10 + 2)


def test_a_bad_row_is_reported_last_and_does_not_affect_the_others(service, tmp_path):
    latents = np.zeros((40, 4), np.float32)
    latents[7] = np.nan
    np.save(tmp_path / "latents.npy", latents)
    result = run(service, "decode", tmp_path / "latents.npy", "-o", tmp_path / "images.npy")
    assert result.exit_code == 3
    assert "39 of 40 images" in result.output
    assert result.output.strip().splitlines()[-1].startswith("failed: row 7: ")
    failure = json.loads((tmp_path / "images.npy.failed.jsonl").read_text())
    assert failure["path"] == "row 7"
    assert np.load(tmp_path / "images.npy").shape == (39, 8, 8, 1)


def test_an_interrupted_decode_resumes_and_a_changed_file_is_another_job(
    service, tmp_path, monkeypatch, client
):
    latents = rng.standard_normal((600, 4)).astype(np.float32)
    np.save(tmp_path / "latents.npy", latents)
    command = ("decode", tmp_path / "latents.npy", "-o", tmp_path / "images.npy", "--concurrency", 1)
    calls, decode = [], Client.decode

    def fail_at_the_third(self, rows):
        calls.append(len(rows))
        if len(calls) == 3:
            raise ClientError("the power is out")
        return decode(self, rows)

    monkeypatch.setattr("vaeserve.client.bulk.runner.PART_ROWS", 128)
    monkeypatch.setattr(Client, "decode", fail_at_the_third)
    stopped = run(service, *command)
    assert (stopped.exit_code, "the power is out" in stopped.output) == (1, True)
    np.save(tmp_path / "latents.npy", latents + 1)
    assert "holds another job" in run(service, *command).output
    np.save(tmp_path / "latents.npy", latents)
    result = run(service, *command)
    assert result.exit_code == 0, result.output
    assert "resuming at 256 of 600" in result.output
    assert sum(calls[3:]) == 600 - 256
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), decode(client, latents))
    assert not (tmp_path / "images.npy.parts").exists()


def test_embeddings_are_decoded_by_the_model_that_made_them(service, tmp_path):
    np.savez(tmp_path / "e.npz", mean=np.zeros((1, 4), np.float32), model="tiny@7")
    result = run(service, "decode", tmp_path / "e.npz", "-o", tmp_path / "images.png")
    assert result.exit_code == 1
    assert "choose one with --model; the service has colour@1, tiny@1" in result.output


def test_results_are_prefetched_up_to_a_limit():
    started, taken = [], 0
    jobs = [partial(started.append, index) for index in range(100)]
    with ThreadPoolExecutor(2) as pool:
        for taken, _ in enumerate(prefetch(pool, jobs, 4), 1):
            assert len(started) <= taken + 4
    assert (taken, len(started)) == (100, 100)


@pytest.mark.parametrize("package", ["httpx", "typer", "rich"])
def test_a_missing_package_ends_in_a_sentence(package):
    hide = f"import sys; sys.modules[{package!r}] = None; sys.argv = ['vae-client', '--help']"
    code = f"{hide}; from vaeserve.client.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"vae-client needs {package}; install it with: pip install 'vaeserve[client]'"
    ]


def test_the_client_needs_no_command_line_packages():
    code = (
        "import sys; sys.modules.update(typer=None, rich=None); from vaeserve import Client; Client().close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    hidden = code.replace("typer=None", "httpx=None")
    result = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, timeout=60)
    assert "Client needs httpx: pip install 'vaeserve[client]'" in result.stderr


def test_embeddings_decode_to_reconstructions(service, folder, tmp_path):
    assert run(service, "encode", folder / "00.png", "-o", tmp_path / "e.npz").exit_code == 0
    assert run(service, "decode", tmp_path / "e.npz", "-o", tmp_path / "decoded.png").exit_code == 0
    result = run(service, "reconstruct", folder / "00.png", "-o", tmp_path / "again.png")
    assert result.exit_code == 0, result.output
    assert result.output.split()[1] == str(folder / "00.png")
    np.testing.assert_array_equal(pixels(tmp_path / "decoded.png"), pixels(tmp_path / "again.png"))
    assert run(service, "reconstruct", folder, "-o", tmp_path / "again.npz").exit_code == 0
    assert np.load(tmp_path / "again.npz")["error"].shape == (40,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "nowhere", "-o", "e.npz"], "nowhere does not exist"),
        (["encode", ".", "-o", "e.npz"], "no images"),
        (["encode", ".", "-o", "e.csv"], "must end in .parquet or .npz or .npy"),
        (["sample", "-n", "100000", "-o", "a.png"], "at most 4,096 images"),
        (["score", ".", "-o", "s.npy"], "must end in .parquet or .npz"),
        (["sample", "-o", "no/such/folder/a.png"], "No such file"),
        (["sample", "--model", "unknown", "-o", "a.png"], "unknown-model"),
        (["decode", "nowhere.npy", "-o", "a.png"], "No such file"),
    ],
)
def test_mistakes_end_in_a_sentence(service, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(service, *arguments)
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.output.replace("│", "").split())
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_service_ends_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("vaeserve.client.client.FIRST_WAIT", 0.001)
    result = run("http://127.0.0.1:9", "sample", "-o", tmp_path / "a.png")
    assert result.exit_code == 1
    assert "no answer from http://127.0.0.1:9" in result.output


def test_the_latent_commands(service, folder, tmp_path):
    a, b, c = sorted(folder.glob("*.png"))[:3]
    scored = run(service, "score", a, b, "-k", 2, "--seed", 7)
    assert scored.exit_code == 0, scored.output
    head, *rows = (line.split("\t") for line in scored.stdout.strip().splitlines())
    assert head == ["p", "elbo", "distortion", "rate", "error", "iwae", "path"]
    assert [row[-1] for row in rows] == [str(a), str(b)]
    assert all(0 < float(row[0]) <= 1 for row in rows)
    way = tmp_path / "way.webp"
    assert run(service, "interpolate", a, b, "-o", way, "-n", 5).exit_code == 0
    with Image.open(way) as animation:
        assert animation.n_frames == 5
    grid, between = tmp_path / "grid.png", tmp_path / "between.npy"
    assert run(service, "traverse", a, "-o", grid, "--dimensions", "1,0", "-n", 3).exit_code == 0
    assert pixels(grid).shape == (22, 32)
    assert run(service, "arithmetic", a, b, c, "-o", between, "--weights", "1,-1,1").exit_code == 0
    assert np.load(between).shape == (1, 8, 8, 1)
    pairs = run(service, "similarity", a, b, c).stdout.strip().splitlines()
    assert [line.split("\t")[1:] for line in pairs] == [[str(x), str(y)] for x, y in ((a, b), (a, c), (b, c))]
    refused = run(service, "traverse", a, "-o", grid, "--dimensions", "99")
    assert refused.exit_code == 1
    assert "has the dimensions 0 to 3" in refused.output
    assert run(service, "traverse", a, "-o", tmp_path / "way.gif").exit_code == 2
