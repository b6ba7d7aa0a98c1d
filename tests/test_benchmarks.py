"""The parts of the serving benchmarks that could make a figure wrong."""

import os
import shutil
import time

import pytest

from benchmarks import curves, load, machine
from benchmarks.bench import Bench, Figures
from benchmarks.contenders import form, ours, picture, png
from benchmarks.load import Request
from benchmarks.serving import write
from tests.checkout import ROOT


@pytest.fixture(params=[True, False], ids=["wrk", "own client"])
def client(request, monkeypatch):
    if request.param and not shutil.which("wrk"):
        pytest.skip("wrk is not installed")
    if not request.param:
        monkeypatch.setattr(load.shutil, "which", lambda name: None)


def test_the_load_client_counts_answers_and_errors(client, mnist):
    requests = (
        Request(f"{mnist}/encode", png()),
        Request(f"{mnist}/encode", *form(png(), "images")),
        Request(f"{mnist}/sample?n=2&seed=1", accept="image/png"),
    )
    for request in requests:
        found = load.measure(request, connections=2, seconds=1)
        assert found.answers > 0
        assert found.bad == 0
        assert 0 < found.p50 <= found.p99 < 60
        assert found.cpu > 0
    refused = load.measure(Request(f"{mnist}/encode", b"not an image"), connections=2, seconds=1)
    assert refused.bad == refused.answers > 0
    assert refused.rate == 0


def test_cpu_time_includes_all_processes_of_the_tree():
    mine = machine.tree(os.getpid())
    assert mine[0] == os.getpid()
    before, machine_before = machine.used(mine), machine.cpu()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    assert machine.used(mine) - before >= 0.25
    spent = machine.cpu() - machine_before
    assert spent.busy >= 0.2
    assert spent.total > 0


def test_figures_replace_older_figures(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- measured: serving -->\nold\n<!-- end: measured -->\nb\n")
    write(page, "serving", "new")
    assert page.read_text() == "a\n<!-- measured: serving -->\nnew\n<!-- end: measured -->\nb\n"
    page.write_text("nothing\n")
    with pytest.raises(SystemExit, match="lacks the lines"):
        write(page, "serving", "new")


def test_the_picture_has_the_size_of_the_model():
    assert picture().shape == (28, 28)
    assert picture().max() > 200
    assert len(png()) < 784


def test_a_curve_shows_medians_and_a_sentence(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- measured: batch -->\n<!-- end: measured -->\n")
    kept = tmp_path / "rounds.json"
    rates = {1: [100.0, 900.0, 200.0], 2: [950.0, 10.0, 800.0]}
    ours = {x: [Figures(rate, 0.001, 0.002) for rate in each] for x, each in rates.items()}
    alone = {x: [Figures(1000.0, 0.001, 0.0)] * 3 for x in rates}
    curves.keep(kept, {"batch": {curves.OURS: ours, curves.RAW: alone}})
    curves.show("batch", curves.read(kept)["batch"], tmp_path, [page])
    text = page.read_text()
    assert (
        "With one image per request the service reaches 0.20 of onnxruntime alone, with 2 it reaches 0.80"
        in text
    )
    assert "| 2 | 800 | 1,000 | 0.80 |" in text
    assert "Medians of 3 rounds" in text
    assert "(batch.svg)" in text
    assert (tmp_path / "batch.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("repeated", "said"), [(1, "; 1 measurement was repeated"), (2, "; 2 measurements were")]
)
def test_conditions_use_the_right_plural(repeated, said, tmp_path):
    bench = Bench(tmp_path, seconds=1, patience=0)
    bench.disturbed, bench.repeated = [0.01], repeated
    assert said in bench.conditions()


def test_another_checkout_runs_its_own_code_under_its_own_name(tmp_path):
    assert (ours(tmp_path).name, ours(tmp_path).folder) == ("vaeserve", ROOT)
    other = ours(tmp_path, tmp_path)
    assert (other.name, other.folder) == (f"vaeserve in {tmp_path.name}", tmp_path)
