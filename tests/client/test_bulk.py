"""Bulk jobs: their sources, resuming after a kill, and their outputs."""

import io
import json
import random
import shutil
import tarfile
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.bulk import after_parts, compare, kill_and_repeat, while_merging
from tests.client.commands import png, run
from vaeserve import Client
from vaeserve.client.bulk.job import Failure, Part, Task, opened
from vaeserve.client.bulk.sources import Entry, find, read
from vaeserve.client.errors import BadRequest, ClientError
from vaeserve.client.png import png as as_png

rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """600 images in two folders, each with its own mean."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(600):
        path = folder / f"{index // 300}" / f"{index:04d}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.zeros((8, 8), np.uint8)
        pixels[0, :3] = index % 256, index // 256, 7
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def whole(service, folder, tmp_path_factory):
    """The output of an undisturbed run."""
    output = tmp_path_factory.mktemp("whole") / "embeddings.npz"
    assert run(service, "encode", folder, "-o", output).exit_code == 0
    return output


# --- sources ----------------------------------------------------------------------------------------------


def test_folders_globs_lists_and_archives_name_the_same_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a.png", "a/b.PNG", "a/c/d.jpg", "a0.webp", "ü \n.gif"]
    for name in [*names, "a/notes.txt", ".hidden.md"]:
        Path("in", name).parent.mkdir(parents=True, exist_ok=True)
        Path("in", name).write_bytes(name.encode())
    expected = sorted(f"in/{name}" for name in names)
    assert [entry.name for entry in find(["in"])] == expected
    assert [entry.name for entry in find(["in/*"])] == expected
    assert [entry.name for entry in find(["in/**/*.jpg", "in/a.png"])] == ["in/a/c/d.jpg", "in/a.png"]
    Path("list.txt").write_text("in/a0.webp\n\nmissing.png\n")
    assert [entry.name for entry in find(["list.txt"])] == ["in/a0.webp", "missing.png"]
    for archive, mode in (("in.tar", "w"), ("in.tgz", "w:gz"), ("in.tar.xz", "w:xz")):
        with tarfile.open(archive, mode) as tar:
            tar.add("in")
        found = list(find([archive]))
        assert sorted(entry.member for entry in found) == expected
        for sources in (read(found), read(found[2:])):  # from the start, and from the middle
            for source in sources:
                assert source.load() == source.entry.member.removeprefix("in/").encode()
        assert [source.entry for source in read([*found, *find(["in"])])][: len(found)] == found
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        list(find(["nowhere"]))


def test_names_are_always_unicode():
    assert Entry("caf\udce9.png").name == "caf\\udce9.png"
    assert Entry("x.tar", "a/b.png").name == "x.tar/a/b.png"


# --- retries and resuming -----------------------------------------------------------------------------------


def test_an_unreliable_service_loses_no_image(folder, service, whole, tmp_path, monkeypatch):
    """Every third request gets a 429 or no answer; the others reach a real service."""
    count = iter(range(10**9))

    class Unreliable(httpx.HTTPTransport):
        def handle_request(self, request):
            match next(count) % 6:
                case 2:
                    return httpx.Response(429, headers={"Retry-After": "0"}, request=request)
                case 4:
                    raise httpx.ConnectError("unreliable")
            return super().handle_request(request)

    def unreliable(*arguments, **options):
        return Client(*arguments, transport=Unreliable(), **options)

    monkeypatch.setattr("vaeserve.client.bulk.commands.Client", unreliable)
    monkeypatch.setattr("vaeserve.client.bulk.sender.BYTES", 40 * 80)  # some 40 of these files
    monkeypatch.setattr("vaeserve.client.bulk.sender.LONGEST_WAIT", 0.05)
    monkeypatch.setattr("vaeserve.client.client.random.uniform", lambda low, high: 0.0)
    result = run(service, "encode", folder, "-o", tmp_path / "e.npz", "--concurrency", 3)
    assert result.exit_code == 0, result.output
    compare(tmp_path / "e.npz", whole)


def test_a_job_that_is_killed_several_times_has_each_image_once(folder, service, whole, tmp_path):
    chance = random.Random()
    moments = [after_parts(chance.randrange(1, 3)), after_parts(chance.randrange(3, 5)), while_merging]
    done = kill_and_repeat(service, ["encode", folder], tmp_path / "e.npz", moments, part_rows=128)
    assert done
    compare(tmp_path / "e.npz", whole)
    assert list(tmp_path.iterdir()) == [tmp_path / "e.npz"]


def test_a_resumed_job_keeps_its_first_list_of_images(folder, service, tmp_path, monkeypatch):
    """Neither new files nor an error change the list."""
    photos = shutil.copytree(folder / "0", tmp_path / "photos")
    monkeypatch.setattr("vaeserve.client.bulk.runner.PART_ROWS", 128)
    calls = iter(range(100))
    encode = Client.encode

    def fail_later(client, files):
        if next(calls) == 2:
            raise BadRequest(401, "unauthorized", "the key was revoked", "id", [])
        return encode(client, files)

    monkeypatch.setattr(Client, "encode", fail_later)
    result = run(service, "encode", photos, "-o", tmp_path / "e.npz", "--concurrency", 1)
    assert result.exit_code == 1
    assert "the key was revoked" in result.output
    monkeypatch.setattr(Client, "encode", encode)

    (photos / "0000a.png").write_bytes(png(np.ones((8, 8), np.uint8)))
    (photos / "0299.png").unlink()
    other = run(service, "encode", folder, "-o", tmp_path / "e.npz")
    assert other.exit_code == 1
    assert "holds another job (encode " in other.output
    result = run(service, "encode", photos, "-o", tmp_path / "e.npz")
    assert result.exit_code == 3, result.output
    assert "resuming at 256 of 300" in result.output
    assert f"failed: {photos / '0299.png'}: " in result.output
    with np.load(tmp_path / "e.npz") as archive:
        assert list(archive["path"]) == [str(photos / f"{index:04d}.png") for index in range(299)]
    (line,) = (tmp_path / "e.npz.failed.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == str(photos / "0299.png")


def test_two_processes_cannot_share_a_job(tmp_path):
    task = Task("encode", ["x"], {})
    with (
        opened(tmp_path / "parts", task, [Entry("a.png")], lambda: "tiny@1"),
        pytest.raises(ClientError, match="another process"),
        opened(tmp_path / "parts", task, [], lambda: "tiny@1"),
    ):
        pass


def test_a_missing_part_is_an_error(tmp_path):
    none = np.zeros(0, np.int64)
    entries = [Entry(f"{index}.png") for index in range(9)]
    with opened(tmp_path / "parts", Task("encode", ["x"], {}), entries, lambda: "tiny@1") as job:
        for start in (0, 3, 6):
            job.add(Part(start, start + 3, none, {}, [Failure(start + i, "broken") for i in range(3)]))
        assert job.done == 9
        (tmp_path / "parts/0000000003-0000000006.npz").unlink()
        with pytest.raises(ClientError, match="lacks the part before 0000000006"):
            print(job.done)


# --- outputs ----------------------------------------------------------------------------------------------


def test_parquet_opens_in_duckdb_and_pandas(folder, service, whole, tmp_path):
    import duckdb
    import pyarrow.parquet as pq

    output = tmp_path / "e.parquet"
    assert run(service, "encode", folder, "-o", output).exit_code == 0
    with np.load(whole) as archive:
        paths, mean = archive["path"], archive["mean"]
    schema = pq.read_schema(output)
    assert str(schema.field("mean").type) == "fixed_size_list<element: float>[4]"
    assert schema.field("mean").metadata == {b"shape": b"[4]"}
    frame = pd.read_parquet(output)
    assert list(frame["path"]) == list(paths)
    assert set(frame["model"]) == {"tiny@1"}
    np.testing.assert_allclose(np.stack(frame["mean"]), mean, atol=1e-5)
    nearest = duckdb.sql(
        f"""select path from '{output}' order by array_distance(mean::float[4],
            (select mean::float[4] from '{output}' where path = '{paths[450]}')) limit 1"""
    ).fetchall()
    assert nearest == [(paths[450],)]


def test_latents_of_any_shape_in_every_format(service, folder, tmp_path):
    for suffix in ("npz", "npy", "parquet"):
        output = tmp_path / f"e.{suffix}"
        result = run(service, "encode", f"{folder}/0/000*.png", "-o", output, "--model", "colour")
        assert result.exit_code == 0, result.output
    with np.load(tmp_path / "e.npz") as archive:
        mean = archive["mean"]
        assert str(archive["model"]) == "colour@1"
    assert mean.shape == (10, 2, 3)
    np.testing.assert_allclose(np.load(tmp_path / "e.npy"), mean, atol=1e-5)
    assert (tmp_path / "e.npy.paths.txt").read_text().splitlines()[3] == f"{folder}/0/0003.png"


def test_the_sheet_shows_the_most_unusual_images_and_the_table_all_boxes(folder, service, tmp_path):
    output, sheet = tmp_path / "s.parquet", tmp_path / "sheet.png"
    arguments = ("score", f"{folder}/0", "--seed", 7, "--model", "colour", "-o", output, "--sheet", sheet)
    assert run(service, *arguments).exit_code == 0
    frame = pd.read_parquet(output)
    assert len(frame) == 300
    assert np.stack(frame["where"]).shape == (300, 4)
    assert {"local", "p_local", "is_anomaly"} <= set(frame)
    order = frame.sort_values(["p_value", "local"], ascending=[True, False])["path"].tolist()
    with Client(service, model="colour") as colour:
        expected = colour.score(order[:100], seed=7, overlay=True).overlay
    found = np.asarray(Image.open(sheet))
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(as_png(expected)))))


def test_a_sheet_needs_a_table_and_a_local_score(folder, service, tmp_path):
    arguments = ("score", f"{folder}/0/000*.png", "--sheet", tmp_path / "sheet.png")
    assert "needs -o" in run(service, *arguments).output
    refused = run(service, *arguments, "-o", tmp_path / "s.npz", "--model", "tiny")
    assert refused.exit_code == 1
    assert "has no local score to draw" in refused.output
    assert (tmp_path / "s.npz").exists()
    assert not (tmp_path / "sheet.png").exists()


def test_scores_do_not_depend_on_how_the_collection_is_divided(folder, service, client, tmp_path):
    """Image r has the noise of row r, even after a broken image."""
    photos = tmp_path / "photos"
    shutil.copytree(folder / "0", photos)
    (photos / "0130.png").write_bytes(b"broken")
    arguments = ("score", photos, "-k", 2, "--seed", 7, "--concurrency", 3)
    assert run(service, *arguments, "-o", tmp_path / "s.npz").exit_code == 3
    assert run(service, *arguments, "-o", tmp_path / "s.parquet").exit_code == 3
    alone = client.score([photos / "0131.png"], k=2, seed=7, first=131)
    files = [path for path in sorted(photos.iterdir()) if path.name != "0130.png"]
    with np.load(tmp_path / "s.npz") as archive:
        found = dict(archive)
    assert list(found.pop("path")) == [str(path) for path in files]
    assert str(found.pop("model")) == "tiny@1"
    assert {"p_value", "p_elbo", "elbo", "distortion", "rate", "log_prior", "error", "iwae"} <= set(found)
    for name, column in alone.columns().items():
        np.testing.assert_allclose(found[name][130], column[0], rtol=1e-4, err_msg=name)
    whole = client.score(files[:130], k=2, seed=7)
    np.testing.assert_allclose(found["iwae"][:130], whole.iwae, rtol=1e-4)
    assert len(set(np.diff(found["iwae"][:130]))) > 1
    frame = pd.read_parquet(tmp_path / "s.parquet")
    np.testing.assert_allclose(frame["elbo"], found["elbo"], rtol=1e-4)
    (line,) = (tmp_path / "s.npz.failed.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == str(photos / "0130.png")


# --- samples ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(service):
    """Images 0 to 599 of seed 7, divided into other requests than those of the command."""
    with Client(service) as client:
        pieces = [client.sample(n, seed=7, first=first).images for n, first in ((1, 0), (90, 1), (509, 91))]
    return np.concatenate(pieces)


def test_samples_are_the_same_in_every_format(service, samples, tmp_path):
    with Image.open(io.BytesIO(as_png(samples))) as sheet:
        expected = np.asarray(sheet)
    for name in ("s.npz", "s.npy", "s", "s.png"):
        result = run(service, "sample", "-n", 600, "--seed", 7, "-o", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert "600 images, seed 7, tiny@1" in result.output
    with np.load(tmp_path / "s.npz") as archive:
        assert (int(archive["seed"]), str(archive["model"])) == (7, "tiny@1")
        assert_same_pixels(archive["images"], samples)
    assert_same_pixels(np.load(tmp_path / "s.npy"), samples)
    names = sorted(path.name for path in (tmp_path / "s").iterdir())
    assert names == [f"{row:08d}.png" for row in range(600)]
    for row in (0, 127, 128, 599):
        with Image.open(tmp_path / "s" / names[row]) as image:
            assert_same_pixels(np.asarray(image)[..., None], samples[row])
    with Image.open(tmp_path / "s.png") as sheet:
        assert_same_pixels(np.asarray(sheet), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.npy", "s.npz", "s.png"]


def assert_same_pixels(found, expected):
    """Equal up to one grey level, because sums are rounded differently in other batches."""
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found == expected).mean() > 0.99


@pytest.mark.parametrize("name", ["s.npy", "s"])
def test_samples_of_a_job_that_is_killed_several_times(service, samples, tmp_path, name):
    moments = [after_parts(1), after_parts(3), while_drawing]
    sample = ["sample", "-n", "600", "--seed", "7"]
    assert kill_and_repeat(service, sample, tmp_path / name, moments, part_rows=128)
    if name == "s":
        files = sorted((tmp_path / "s").iterdir())
        images = np.stack([np.asarray(Image.open(file))[..., None] for file in files])
    else:
        images = np.load(tmp_path / name)
    assert_same_pixels(images, samples)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def while_drawing(parts):
    """The output is being written."""
    return while_merging(parts) or (parts / "images").exists()


def test_a_resumed_job_keeps_the_seed_that_it_chose(service, tmp_path, monkeypatch):
    monkeypatch.setattr("vaeserve.client.bulk.runner.PART_ROWS", 128)
    sample, calls = Client.sample, iter(range(100))

    def fail_later(client, *arguments, **options):
        if next(calls) == 1:
            raise BadRequest(401, "unauthorized", "the key was revoked", "id", [])
        return sample(client, *arguments, **options)

    monkeypatch.setattr(Client, "sample", fail_later)
    arguments = ("sample", "-n", 300, "-o", tmp_path / "s.npz", "--concurrency", 1)
    assert run(service, *arguments).exit_code == 1
    result = run(service, *arguments)
    assert result.exit_code == 0, result.output
    assert "resuming at 128 of 300" in result.output
    with np.load(tmp_path / "s.npz") as archive, Client(service) as client:
        assert_same_pixels(archive["images"], client.sample(300, seed=int(archive["seed"])).images)


def test_samples_are_not_written_to_a_folder_that_is_not_empty(service, tmp_path):
    (tmp_path / "s").mkdir()
    assert run(service, "sample", "-n", 2, "-o", tmp_path / "s").exit_code == 0
    result = run(service, "sample", "-n", 2, "-o", tmp_path / "s")
    assert result.exit_code == 1
    assert "is not an empty folder" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_a_mistake_in_a_command_leaves_no_job(service, tmp_path):
    result = run(service, "sample", "-n", 2, "--label", "cat", "-o", tmp_path / "s.npy")
    assert result.exit_code == 1
    assert "was published without labels" in result.output
    assert list(tmp_path.iterdir()) == []


def test_no_output_if_every_file_is_broken(service, tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    result = run(service, "encode", tmp_path / "a.png", "-o", tmp_path / "e.npz")
    assert result.exit_code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "e.npz.failed.jsonl"]


def test_an_unknown_model_leaves_no_job(service, folder, tmp_path):
    result = run(service, "encode", folder, "-o", tmp_path / "e.npz", "--model", "tiny@9")
    assert result.exit_code == 1
    assert "the service has colour@1, tiny@1" in result.output
    assert list(tmp_path.iterdir()) == []
