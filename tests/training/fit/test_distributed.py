"""Several processes, started by torchrun, compute what one would; and survive the loss of one."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from tests.checkout import ROOT
from tests.training.runs import TINY, Watch, figures
from training.config import ConfigError
from training.fit import checkpoint
from training.fit.distributed import Ranks
from training.fit.trainer import fit


def torchrun(*arguments, **more):
    """Two processes on this machine, on a free port that torchrun finds itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*command, *map(str, arguments)], env=environment, **more)


LIKELIHOODS = {"gaussian": 128, "bernoulli": 127}  # and batches, of which one has no equal halves
SCRIPT = """
    import dataclasses, os, sys
    from pathlib import Path
    from tests.training.runs import TINY, Watch
    from tests.training.fit.test_distributed import LIKELIHOODS
    from training.data.load import load
    from training.fit import distributed
    from training.fit import trainer

    ranks = distributed.join()
    assert (ranks.size, ranks.launched) == (2, True)
    for likelihood, batch in LIKELIHOODS.items():
        config = TINY.replace(likelihood=likelihood, batch=batch, epochs=2)
        run = Path(sys.argv[1]) / likelihood
        result = trainer.fit(config, load("digits"), run, progress=Watch(), ranks=ranks)
        assert result.finished
    assert ranks.share(lambda: ranks.rank) == 0
    assert ranks.any(ranks.rank == 1, ranks.device("cpu"))
    distributed.leave(ranks)
    os._exit(0)  # as training.__main__ does, which says why
"""


@pytest.mark.heavy
def test_two_processes_match_one(digits, tmp_path, monkeypatch):
    """With half the batch each: σ², noise, order, gradients and every figure; also where 127 is halved."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    assert torchrun(script, tmp_path / "two").wait(120) == 0
    for likelihood, batch in LIKELIHOODS.items():
        config = TINY.replace(likelihood=likelihood, batch=batch, epochs=2)
        one, two = tmp_path / "one" / likelihood, tmp_path / "two" / likelihood
        fit(config, digits, one, progress=Watch())
        for line, expected in zip(figures(two), figures(one), strict=True):
            assert line["step"] == expected["step"]
            for part in ("train", "validation"):
                assert line[part] == pytest.approx(expected[part], rel=1e-3), (part, likelihood)
            assert line["sigma"] == pytest.approx(expected["sigma"], rel=1e-4)
        tensors = [checkpoint.read_tensors(checkpoint.latest(run))["ema"] for run in (two, one)]
        for name, weights in tensors[0].items():
            torch.testing.assert_close(weights, tensors[1][name], atol=2e-4, rtol=1e-3)


COMMAND_LINE = """
    import sys
    from training import __main__
    from training.publishing import publish

    def published(*_):
        print("published", file=sys.stderr)
        sys.exit()

    publish.publish_checkpoint = published  # it takes long, and is tested elsewhere
    __main__.main()
"""


@pytest.mark.heavy
def test_a_killed_process_is_started_again_and_the_run_finishes(tmp_path):
    """torchrun restarts the command line, which finds the checkpoint by itself."""
    run = tmp_path / "run"
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(COMMAND_LINE))
    command = [
        script,
        "fit",
        "--run",
        run,
        "--epochs",
        "40",
        "--batch",
        "128",
        "--width",
        "4",
        "--latent",
        "4",
    ]
    with torchrun("--max-restarts", "1", "--", *command, stderr=subprocess.PIPE, text=True) as agent:
        deadline = time.monotonic() + 60
        while not checkpoint.latest(run):
            assert agent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        workers = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        _, said = agent.communicate(timeout=120)
    assert agent.returncode == 0, said
    assert "resuming from step" in said
    assert said.count("published\n") == 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 440
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})


def test_alone_everything_is_as_if_there_were_no_processes():
    alone = Ranks()
    rows = torch.arange(5)
    assert alone.first
    assert alone.mine(rows).equal(rows)
    assert alone.sum(rows) is rows
    assert alone.share(lambda: 7) == 7
    network = torch.nn.Linear(1, 1)
    assert alone.parallel(network, torch.device("cpu")) is network
    assert not torch.distributed.is_initialized()


def test_every_row_of_a_batch_belongs_to_one_process():
    rows = torch.arange(7)
    shares = [Ranks(rank, 3).mine(rows).tolist() for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]


def test_a_batch_smaller_than_the_processes_is_refused(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(Ranks, "share", lambda self, compute: compute())
    with pytest.raises(ConfigError, match=r"--batch 1 .* 2 processes"):
        fit(TINY.replace(batch=1), digits, tmp_path, ranks=Ranks(0, 2))


@pytest.mark.parametrize("name", ["warp", "cuda:97"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name}.*cannot be used"):
        Ranks().device(name)
    assert Ranks().device("cpu") == torch.device("cpu")
