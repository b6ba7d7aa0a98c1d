"""Runs of seconds on digits, and how two of them are compared."""

import json

import pytest
import torch

from training.config import TrainConfig
from training.fit import checkpoint
from training.fit.trainer import fit

EVERY = 11
# 44 steps of a tiny network; checkpoints only where a test asks for them. In float32, so that every machine
# computes about the same.
TINY = TrainConfig(
    epochs=4,
    batch=128,
    width=4,
    latent=4,
    augment="none",
    evaluate_every=EVERY,
    checkpoint_seconds=1e9,
    precision="float32",
)


class Watch:
    """A progress that calls `at(step)` after each step, and records its calls."""

    def __init__(self, at=lambda step: None):
        self.at, self.notes, self.lines = at, [], []

    def step(self, step, epoch, distortion, rate, images_per_second):
        self.at(step)

    def evaluated(self, line):
        self.lines.append(line)

    def note(self, text):
        self.notes.append(text)


def learned_and_resumed(config, images, folder):
    """The result of a run that improved. A twin that was interrupted and resumed must equal it."""
    whole = fit(config, images, folder / "whole", progress=Watch())
    elbos = [line["validation"]["elbo"] for line in whole.history]
    assert elbos[-1] > elbos[0]
    cut = config.replace(checkpoint_seconds=0)

    class Stop(Exception):
        pass

    def stop(step):
        if step == 17:
            raise Stop

    with pytest.raises(Stop):
        fit(cut, images, folder / "cut", progress=Watch(stop))
    fit(cut, images, folder / "cut", resume=True, progress=Watch())
    assert_same_end(folder / "cut", folder / "whole")
    return whole


def assert_same_end(run, other):
    """Bit for bit: weights, averages, optimiser, σ², best, and every figure but the speed."""
    tensors, others = (checkpoint.read_tensors(checkpoint.latest(of)) for of in (run, other))
    assert_equal(tensors, others)
    states = [checkpoint.read_state(checkpoint.latest(of)) for of in (run, other)]
    for state in states:  # decides when, not what
        del state["config"]["checkpoint_seconds"]
    assert states[0] == states[1]
    assert figures(run) == figures(other)


def figures(run):
    """The lines of metrics.jsonl without the speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def assert_equal(a, b):
    if isinstance(a, torch.Tensor):
        assert a.equal(b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b
