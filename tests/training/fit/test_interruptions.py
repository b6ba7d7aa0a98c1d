"""A run that was killed in any way and resumed ends with the same bits as one that was not."""

import dataclasses
import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from tests.checkout import ROOT
from tests.training.runs import TINY, Watch, assert_same_end
from training.fit import checkpoint
from training.fit.trainer import TrainingError, fit

# Imports torch once and forks for each life. `train(run)` writes a checkpoint at every step.
PARENT = """
    import dataclasses, os, random, resource, shutil, signal, sys, time
    from pathlib import Path
    from tests.training.runs import TINY, Watch
    from training.fit import checkpoint
    from training.data.load import load
    from training.fit import trainer

    digits = load("digits")

    def train(run, at=lambda step: None):
        config = TINY.replace(checkpoint_seconds=0)
        trainer.fit(config, digits, Path(run), resume=True, progress=Watch(at))

    def life(body, seconds=None):
        "The wait status of a process that runs `body`, killed after `seconds`."
        if not (child := os.fork()):
            body()
            os._exit(0)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def run_parent(body, *arguments):
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PARENT) + textwrap.dedent(body), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,
    )


@pytest.mark.heavy
def test_killed_again_and_again_at_random_moments(uninterrupted, tmp_path):
    """Often in the middle of writing a checkpoint, for one is written at every step."""
    run_parent(
        """
        run, generator = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
        kills = 0
        while life(lambda: train(run), None if kills == 8 else generator.uniform(0.05, 0.5)):
            kills += 1
        assert kills, "finished before the first kill"
        """,
        tmp_path,
        seed := random.randrange(2**32),
    )
    assert not list((tmp_path / "checkpoints").glob(".*")), seed
    assert not list(tmp_path.glob(".*")), seed
    assert_same_end(tmp_path, uninterrupted.run)


MOMENTS = {
    "half the tensors are written": "checkpoint.torch.save = lambda _, file: (file.write(b'PK'), die())",
    "the tensors are there but not the state": "checkpoint.json.dumps = die",
    "both are written but not synced": "os.fsync = die",
    "both are synced but not renamed": "os.replace = die",
    "it is renamed": "rename = os.replace; os.replace = lambda *paths: (rename(*paths), die())",
    "an old one is half removed": (
        "checkpoint.shutil.rmtree = lambda old: (os.remove(f'{old}/state.pt'), die())"
    ),
}


@pytest.mark.heavy
def test_killed_while_a_checkpoint_is_written(digits, uninterrupted, tmp_path):
    run_parent(
        """
        def train_until(step, moment, run):
            train(run, lambda now: exec(moment, globals()) if now == step else None)

        for number, moment in enumerate(sys.argv[3:]):
            at, run = int(sys.argv[2]) + number, Path(sys.argv[1], str(number))
            assert life(lambda: train_until(at, moment, run)) == -signal.SIGKILL
        """,
        tmp_path,
        at := random.randrange(3, 7),
        *MOMENTS.values(),
    )
    for number, moment in enumerate(MOMENTS):
        newest = checkpoint.read_state(checkpoint.latest(tmp_path / str(number)))
        assert newest["step"] == at + number - (number < 4), moment
        fit(TINY, digits, tmp_path / str(number), resume=True, progress=Watch())
        assert_same_end(tmp_path / str(number), uninterrupted.run)


def test_a_full_disk_ends_the_run_and_its_last_checkpoint_can_be_resumed(digits, uninterrupted, tmp_path):
    """A real failing write, by the process's limit on the size of files; first into the tensors."""
    at = random.randrange(1, 40)
    run_parent(
        f"""
        def fill_at(step):
            if step == {at}:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        def body():
            try:
                train(sys.argv[1], fill_at)
            except checkpoint.CheckpointError as error:
                assert "--resume" in str(error) and "state.pt" not in str(error), error
                os._exit(7)
        assert life(body) == 7
        """,
        tmp_path,
    )
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert f"step-{at - 1:08d}" in names or at == 1
    assert not [name for name in names if name.startswith(".")]
    fit(TINY, digits, tmp_path, resume=True, progress=Watch())
    assert_same_end(tmp_path, uninterrupted.run)


@pytest.mark.parametrize("path", ["metrics.jsonl", "config.json"])
def test_a_full_disk_is_said_in_a_sentence_for_small_files_too(digits, tmp_path, monkeypatch, path):
    real = Path.open

    def full(self, mode="r", *args, **kwargs):
        if self.name == path and mode != "r":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(checkpoint.CheckpointError, match=r"No space left.*--resume"):
        fit(TINY, digits, tmp_path, progress=Watch())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_resuming_cannot_be_seen(digits, uninterrupted, tmp_path, number):
    at = random.randrange(1, 44)
    handler = signal.getsignal(number)
    stopped = fit(
        TINY, digits, tmp_path, progress=Watch(lambda step: step == at and os.kill(os.getpid(), number))
    )
    assert not stopped.finished
    assert checkpoint.read_state(checkpoint.latest(tmp_path))["step"] == at
    assert signal.getsignal(number) is handler
    resumed = fit(TINY, digits, tmp_path, resume=True, progress=Watch())
    assert resumed.finished
    assert resumed.history[-1]["step"] == 44
    assert_same_end(tmp_path, uninterrupted.run)


def test_a_run_of_many_short_commands_is_the_same_run(digits, uninterrupted, tmp_path):
    """`--stop-after`: where a command may take nine minutes, a run is as many commands as it needs."""

    def command():
        slow = Watch(lambda step: time.sleep(0.02))
        return fit(TINY, digits, tmp_path, resume=True, stop_after=0.4, progress=slow)

    commands = 1
    while not (result := command()).finished:
        commands += 1
    assert commands > 1
    assert result.history[-1]["step"] == 44
    assert_same_end(tmp_path, uninterrupted.run)


class Torn(np.ndarray):
    """Pixels whose rows can be read `reads` times, then no more, as on a disk that was unplugged."""

    reads = 21

    def __getitem__(self, key):
        if isinstance(key, np.ndarray):
            if not self.reads:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.reads -= 1
        return np.asarray(self)[key]


def test_images_that_cannot_be_read_any_more_end_the_run(digits, uninterrupted, tmp_path):
    torn = dataclasses.replace(digits, pixels=digits.pixels.view(Torn))
    with pytest.raises(TrainingError, match=r"can no longer be read.*Input/output.*step-00000011"):
        fit(TINY, torn, tmp_path, progress=Watch())
    fit(TINY, digits, tmp_path, resume=True, progress=Watch())
    assert_same_end(tmp_path, uninterrupted.run)
