"""The parts of the serving benchmark that a wrong figure could come from."""

import os
import shutil
import time

import pytest

from benchmarks import curves, load, machine
from benchmarks.load import Request
from benchmarks.serving import Figures, form, picture, png, write


@pytest.fixture(params=[True, False], ids=["wrk", "own client"])
def client(request, monkeypatch):
    if request.param and not shutil.which("wrk"):
        pytest.skip("wrk is not installed")
    if not request.param:
        monkeypatch.setattr(load.shutil, "which", lambda name: None)


def test_the_load_counts_what_the_service_answered(client, mnist):
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
    refused = load.measure(Request(f"{mnist}/encode", b"no image"), connections=2, seconds=1)
    assert refused.bad == refused.answers > 0
    assert refused.rate == 0


def test_cpu_time_is_that_of_the_whole_tree():
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


def test_figures_replace_older_ones(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- measured: serving -->\nold\n<!-- end: measured -->\nb\n")
    write(page, "serving", "new")
    assert page.read_text() == "a\n<!-- measured: serving -->\nnew\n<!-- end: measured -->\nb\n"
    page.write_text("nothing\n")
    with pytest.raises(SystemExit, match="to write between"):
        write(page, "serving", "new")


def test_the_picture_is_one_that_the_model_takes():
    assert picture().shape == (28, 28)
    assert picture().max() > 200
    assert len(png()) < 784


def test_a_curve_is_drawn_of_the_medians_and_told_in_a_sentence(tmp_path):
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
        "With one image in a request the service reaches 0.20 of onnxruntime alone, with 2 it reaches 0.80"
        in text
    )
    assert "| 2 | 800 | 1,000 | 0.80 |" in text
    assert "Medians of 3 rounds" in text
    assert "(batch.svg)" in text
    assert (tmp_path / "batch.svg").read_text().startswith("<?xml")
