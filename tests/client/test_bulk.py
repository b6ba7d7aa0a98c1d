"""Whole collections: what is read, what is kept when things go wrong, and what comes out."""

import io
import json
import random
import tarfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.bulk import after_parts, compare, kill_and_repeat, while_merging
from client import Client, bulk
from client.__main__ import app
from client.errors import BadRequest, ClientError, Overloaded, ServerFault, Unreachable
from client.job import Failure, Part, Task, opened
from client.pace import Pace
from client.sources import Entry, find, read

rng = np.random.default_rng(0)


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def run(service, *arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"VAESERVE_URL": service})


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
        for sources in (read(found), read(found[2:])):  # from the beginning, and going on in the middle
            for source in sources:
                assert source.load() == source.entry.member.removeprefix("in/").encode()
        assert [source.entry for source in read([*found, *find(["in"])])][: len(found)] == found
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        list(find(["nowhere"]))


def test_names_are_always_unicode():
    assert Entry("caf\udce9.png").name == "caf\\udce9.png"
    assert Entry("x.tar", "a/b.png").name == "x.tar/a/b.png"


# --- the service says no ----------------------------------------------------------------------------------


def overloaded(seconds):
    error = Overloaded(429, "overloaded", "later", "id", [])
    error.retry_after = seconds
    return error


def test_pace_is_halved_once_a_round_and_grows_again():
    pace = Pace(8)
    started = time.monotonic()
    for _ in range(8):
        pace.overloaded(started, 0)
    assert pace.limit == 4
    pace.overloaded(time.monotonic() + 1, 0)
    assert pace.limit == 2
    for _ in range(100):
        pace.went_well()
    assert pace.limit == 8


def test_nobody_asks_before_the_service_said_so_and_no_more_than_it_takes():
    pace, inside, most = Pace(8), [], []

    def visit():
        with pace:
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    pace.overloaded(time.monotonic(), 0.2)
    started = time.monotonic()
    threads = [threading.Thread(target=visit) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started >= 0.2
    assert max(most) <= 4


@pytest.mark.parametrize(
    "failure", [overloaded(0.01), Unreachable("gone"), ServerFault(504, "t", "", "", [])]
)
def test_a_request_is_repeated_until_it_succeeds(failure):
    failures = [failure] * 3

    def call(files):
        if failures:
            raise failures.pop()
        return {"mean": np.zeros((len(files), 1))}

    rows, failed = bulk.Conductor(call, concurrency=2, patience=60).rows(sources(3))
    assert [indices for indices, _ in rows] == [[0, 1, 2]]
    assert not failed
    assert not failures


def test_patience_ends():
    def call(files):
        raise overloaded(0.01)

    with pytest.raises(Overloaded):
        bulk.Conductor(call, concurrency=2, patience=0.05).rows(sources(3))


def sources(count):
    entries = [(i, next(read([Entry(f"{i}.png")]))) for i in range(count)]
    return [(i, source._replace(load=(lambda i=i: b"%d" % i))) for i, source in entries]


@pytest.mark.parametrize("pointing", [True, False])
def test_files_that_are_refused_cost_the_others_nothing(pointing):
    bad = {b"3", b"4", b"90", b"127"}
    requests = []

    def call(files):
        requests.append(len(files))
        at = next((at for at, file in enumerate(files) if file in bad), None)
        if at is not None:
            errors = [{"pointer": f"/images/{at}"}] if pointing else []
            raise BadRequest(422, "bad-image", "is broken", "id", errors)
        return {"mean": np.array([[float(file)] for file in files])}

    rows, failed = bulk.Conductor(call, concurrency=1, patience=60).rows(sources(128))
    assert sorted(each.entry for each in failed) == [3, 4, 90, 127]
    done = {
        i: value[0] for indices, columns in rows for i, value in zip(indices, columns["mean"], strict=True)
    }
    assert done == {i: i for i in range(128) if i not in (3, 4, 90, 127)}
    assert len(requests) < (15 if pointing else 60)


@pytest.mark.parametrize(("status", "kind"), [(401, BadRequest), (409, BadRequest), (500, ServerFault)])
def test_what_no_file_is_to_blame_for_ends_the_job(status, kind):
    def call(files):
        raise kind(status, "slug", "says no", "id", [])

    with pytest.raises(kind, match="says no"):
        bulk.Conductor(call, concurrency=1, patience=0).rows(sources(4))


def test_a_full_service_that_comes_and_goes_loses_nothing(folder, service, whole, tmp_path, monkeypatch):
    """Every third answer is 429 or nothing at all: between the client and a real service."""
    count = iter(range(10**9))

    class Moody(httpx.HTTPTransport):
        def handle_request(self, request):
            match next(count) % 6:
                case 2:
                    return httpx.Response(429, headers={"Retry-After": "0"}, request=request)
                case 4:
                    raise httpx.ConnectError("moody")
            return super().handle_request(request)

    def moody(*arguments, **options):
        return Client(*arguments, transport=Moody(), **options)

    monkeypatch.setattr("client.collection.Client", moody)
    monkeypatch.setattr("client.bulk.BYTES", 40 * 80)  # some 40 of these files
    monkeypatch.setattr("client.bulk.LONGEST_WAIT", 0.05)
    monkeypatch.setattr("client.client.random.uniform", lambda low, high: 0.0)
    result = run(service, "encode", folder, "-o", tmp_path / "e.npz", "--concurrency", 3)
    assert result.exit_code == 0, result.output
    compare(tmp_path / "e.npz", whole)


# --- killed -----------------------------------------------------------------------------------------------


def test_killed_again_and_again_it_ends_with_everything_once(folder, service, whole, tmp_path):
    chance = random.Random()
    moments = [after_parts(chance.randrange(1, 3)), after_parts(chance.randrange(3, 5)), while_merging]
    done = kill_and_repeat(service, folder, tmp_path / "e.npz", moments, part_rows=128)
    assert done
    compare(tmp_path / "e.npz", whole)
    assert list(tmp_path.iterdir()) == [tmp_path / "e.npz"]


def test_it_goes_on_with_what_was_found_first(folder, service, tmp_path, monkeypatch):
    """Neither new files nor an error in between change what the job is about."""
    import shutil

    photos = shutil.copytree(folder / "0", tmp_path / "photos")
    monkeypatch.setattr("client.bulk.PART_ROWS", 128)
    calls = iter(range(100))
    encode = Client.encode

    def fail_later(client, files):
        if next(calls) == 2:
            raise BadRequest(401, "unauthorized", "the key was taken away", "id", [])
        return encode(client, files)

    monkeypatch.setattr(Client, "encode", fail_later)
    result = run(service, "encode", photos, "-o", tmp_path / "e.npz", "--concurrency", 1)
    assert result.exit_code == 1
    assert "the key was taken away" in result.output
    monkeypatch.setattr(Client, "encode", encode)

    (photos / "0000a.png").write_bytes(png(1))
    (photos / "0299.png").unlink()
    other = run(service, "encode", folder, "-o", tmp_path / "e.npz")
    assert other.exit_code == 1
    assert "holds another job (encode " in other.output
    result = run(service, "encode", photos, "-o", tmp_path / "e.npz")
    assert result.exit_code == 3, result.output
    assert "going on at 256 of 300" in result.output
    assert f"failed: {photos / '0299.png'}: " in result.output
    with np.load(tmp_path / "e.npz") as archive:
        assert list(archive["path"]) == [str(photos / f"{index:04d}.png") for index in range(299)]
    (line,) = (tmp_path / "e.npz.failed.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == str(photos / "0299.png")


def test_one_folder_of_parts_has_one_process(tmp_path):
    task = Task("encode", ["x"], {})
    with (
        opened(tmp_path / "parts", task, [Entry("a.png")], lambda: "tiny@1"),
        pytest.raises(ClientError, match="another process"),
        opened(tmp_path / "parts", task, [], lambda: "tiny@1"),
    ):
        pass


def test_a_hole_in_the_parts_is_not_taken_for_done(tmp_path):
    none = np.zeros(0, np.int64)
    entries = [Entry(f"{index}.png") for index in range(9)]
    with opened(tmp_path / "parts", Task("encode", ["x"], {}), entries, lambda: "tiny@1") as job:
        for start in (0, 3, 6):
            job.add(Part(start, start + 3, none, {}, [Failure(start + i, "broken") for i in range(3)]))
        assert job.done == 9
        (tmp_path / "parts/0000000003-0000000006.npz").unlink()
        with pytest.raises(ClientError, match="lost the part before 0000000006"):
            print(job.done)


# --- what comes out ---------------------------------------------------------------------------------------


def test_parquet_opens_in_duckdb_and_pandas(folder, service, whole, tmp_path):
    import duckdb
    import pandas as pd
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


def test_a_collection_of_nothing_but_broken_files_has_no_output(service, tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    result = run(service, "encode", tmp_path / "a.png", "-o", tmp_path / "e.npz")
    assert result.exit_code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "e.npz.failed.jsonl"]


def test_a_model_that_is_not_there(service, folder, tmp_path):
    result = run(service, "encode", folder, "-o", tmp_path / "e.npz", "--model", "tiny@9")
    assert result.exit_code == 1
    assert "the service has colour@1, tiny@1" in result.output
    assert list(tmp_path.iterdir()) == []
