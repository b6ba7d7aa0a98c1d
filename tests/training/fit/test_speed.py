"""What makes training fast may fail or be absent: then it trains all the same."""

import itertools
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

from tests.checkout import ROOT
from tests.training.runs import TINY, Watch, assert_equal
from training.config import COMPILING_PAYS, TrainConfig, resolve
from training.fit import checkpoint, precision
from training.fit.trainer import fit

COMPILED = """
    import dataclasses, sys
    from pathlib import Path
    from tests.training.runs import TINY, Watch
    from training.data.load import load
    from training.fit import trainer

    watch = Watch()
    config = TINY.replace(epochs=1, compile=True)
    trainer.fit(config, load("digits"), Path(sys.argv[1]), progress=watch)
    print(*watch.notes, sep="\\n")
"""


def compiled_run(folder, **environment):
    """The notes of an epoch with `compile`, in a process of its own whose compiler's cache is empty."""
    more = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMPILED), str(folder / "run")],
        cwd=ROOT,
        env=os.environ | more | environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout


def averaged(folder):
    return checkpoint.read_tensors(checkpoint.latest(folder))["ema"]


@pytest.mark.heavy
def test_without_a_compiler_it_trains_as_if_nothing_had_been_asked(digits, tmp_path):
    notes = compiled_run(tmp_path, CXX="no-such-compiler", PATH="")
    assert "continuing without torch.compile" in notes
    fit(TINY.replace(epochs=1), digits, tmp_path / "plain", progress=Watch())
    assert_equal(averaged(tmp_path / "run"), averaged(tmp_path / "plain"))


@pytest.mark.heavy
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_it_computes_the_same(digits, tmp_path):
    notes = compiled_run(tmp_path)
    assert "continuing without" not in notes
    fit(TINY.replace(epochs=1), digits, tmp_path / "plain", progress=Watch())
    expected = averaged(tmp_path / "plain")
    for name, weights in averaged(tmp_path / "run").items():
        torch.testing.assert_close(weights, expected[name], atol=1e-4, rtol=1e-3)


def test_long_runs_are_compiled_and_short_ones_are_not():
    def compiles(epochs, asked=None):
        config = TrainConfig(epochs=epochs, compile=asked)
        return resolve(config, name="a", train=60_000, image=(28, 28, 1), binary=False).compile

    pays = COMPILING_PAYS / (60_000 * 28 * 28)
    assert (compiles(int(pays)), compiles(int(pays) + 1)) == (False, True)
    assert (compiles(1, True), compiles(1000, False)) == (True, False)


def test_bfloat16_is_chosen_where_the_processor_has_it(monkeypatch):
    cpu = torch.device("cpu")
    for amx, avx in itertools.product((True, False), repeat=2):
        has = {"amx_bf16": amx, "avx512_bf16": avx}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert precision.resolve_precision("auto", cpu) == ("bfloat16" if amx or avx else "float32")
        assert precision.resolve_precision("auto", torch.device("cuda")) == "float32"
        assert precision.resolve_precision("bfloat16", cpu) == "bfloat16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # another architecture
    assert precision.resolve_precision("auto", cpu) == "float32"


def test_in_bfloat16_it_learns_as_much_and_resumes_as_exactly(digits, uninterrupted, tmp_path, monkeypatch):
    config = TINY.replace(precision="bfloat16")
    whole = fit(config, digits, tmp_path / "whole", progress=Watch())
    assert whole.config.precision == "bfloat16"
    elbo, expected = (run.history[-1]["validation"]["elbo"] for run in (whole, uninterrupted))
    assert elbo == pytest.approx(expected, abs=0.5)
    assert elbo != expected

    class Stopped(Exception):
        pass

    def stop(step):
        if step == 30:
            raise Stopped

    with pytest.raises(Stopped):
        fit(config, digits, tmp_path / "parts", progress=Watch(stop))
    fit(config, digits, tmp_path / "parts", resume=True, progress=Watch())
    tensors = checkpoint.read_tensors(checkpoint.latest(tmp_path / "parts"))
    assert {value.dtype for value in tensors["network"].values()} == {torch.float32}
    assert_equal(tensors, checkpoint.read_tensors(checkpoint.latest(tmp_path / "whole")))
