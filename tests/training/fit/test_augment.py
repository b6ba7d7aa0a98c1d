"""Augmentation: what it changes, when it is used, and that it fits the set."""

import numpy as np
import pytest
import torch

from tests.training.runs import TINY, Watch, learned_and_resumed
from training.config import NO_AUGMENTATION, Augmentation
from training.data.images import from_arrays
from training.fit import augment, trainer
from training.fit.batches import Pixels, draw
from training.fit.distributed import Ranks
from training.fit.trainer import ALONE, fit


def spots(n, side=24, *, at=None, size=(3.0, 3.0), light=(255, 255), seed=0):
    """n grey images uint8 [n, side, side, 1] of one round spot each, at `at` (row, column) or anywhere."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    out = []
    for _ in range(n):
        row, column = at or rng.uniform(side * 0.25, side * 0.75, 2)
        apart = np.hypot(rows - row, columns - column)
        out.append(rng.uniform(*light) * np.exp(-((apart / rng.uniform(*size)) ** 2)))
    return np.array(out).astype(np.uint8)[..., None]


def batch(n=16):
    return torch.from_numpy(spots(n)).permute(0, 3, 1, 2).float() / 255


def uniform(n, value=None):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 7, generator=generator) if value is None else torch.full((n, 7), value)


def test_without_amounts_nothing_changes():
    changed = augment.augment(batch(), uniform(16), NO_AUGMENTATION)
    torch.testing.assert_close(changed, batch(), atol=1e-6, rtol=0)


def test_the_middle_of_every_range_is_the_image_itself():
    changed = augment.augment(batch(), uniform(16, 0.5), augment.MOST)
    torch.testing.assert_close(changed, batch(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("field", Augmentation().amounts)
def test_every_amount_changes_images_within_the_range_of_pixels(field):
    strong = Augmentation(**{field: 10 * getattr(augment.MOST, field)})
    changed = augment.augment(batch(), uniform(16), strong)
    assert changed.shape == batch().shape
    assert ((changed >= 0) & (changed <= 1)).all()
    assert (changed - batch()).abs().flatten(1).max(1).values.min() > 0.01


def test_a_shift_moves_by_its_share_of_the_side_and_a_mirror_image_is_one():
    numbers = uniform(1, 0.5)
    numbers[0, 1] = 1.0
    moved = augment.augment(batch(1), numbers, Augmentation(shift=0.125))  # 3 of 24 pixels
    torch.testing.assert_close(moved[..., :-3], batch(1)[..., 3:], atol=1e-4, rtol=0)
    numbers[0, :2] = torch.tensor([0.0, 0.5])
    for amounts in ({}, {"rotation": 10}):
        mirrored = augment.augment(batch(1), numbers, Augmentation(mirror=True, **amounts))
        torch.testing.assert_close(mirrored, batch(1).flip(3), atol=1e-4, rtol=0)


def fitted(pixels):
    return augment.fitting(pixels, np.arange(len(pixels)), seed=0)


def test_what_lies_anywhere_may_be_shifted_and_what_is_aligned_may_not():
    anywhere = fitted(spots(300, size=(2.0, 5.0), light=(100, 255)))
    assert anywhere.shift >= augment.MOST.shift / 2
    assert anywhere.mirror
    aligned = fitted(spots(300, at=(12, 6), size=(2.0, 5.0), light=(100, 255)))
    assert aligned.shift == 0
    assert not aligned.mirror


def test_brightness_changes_only_where_it_varies():
    pixels = 20 + (spots(300) * 0.5).astype(np.uint8)
    backgrounds = np.random.default_rng(0).integers(0, 80, (300, 1, 1, 1), dtype=np.uint8)
    assert fitted(pixels + backgrounds).brightness >= augment.MOST.brightness / 2
    assert fitted(spots(300, at=(12, 12), size=(2.0, 5.0))).brightness < augment.MOST.brightness / 2


def test_digits_are_turned_but_never_mirrored(digits):
    found = augment.fitting(digits.pixels, digits.split.train, 0)
    assert not found.mirror
    assert found.rotation > 0


def test_auto_leaves_large_sets_as_they_are():
    measured = Augmentation(shift=0.1)
    assert augment.choose("auto", augment.FEW_PASSES + 1, lambda: measured) == measured
    assert augment.choose("auto", augment.FEW_PASSES, lambda: measured) == NO_AUGMENTATION
    assert augment.choose("none", 1000, lambda: measured) == NO_AUGMENTATION
    assert augment.choose("light", 1, lambda: measured) == augment.LIGHT


def drawn(digits, augmentation, purpose, number=5, ranks=ALONE):
    config = TINY.replace(likelihood="gaussian", augmentation=augmentation)
    pixels = Pixels(digits, torch.device("cpu"))
    return draw(config, pixels, digits.split.train[:8], ranks, purpose, number)[0]


def test_only_training_steps_are_augmented_each_in_its_own_way(digits):
    plain = drawn(digits, NO_AUGMENTATION, "step")
    assert torch.equal(drawn(digits, augment.MOST, "validation"), plain)
    once = drawn(digits, augment.MOST, "step")
    assert not torch.equal(once, plain)
    assert torch.equal(drawn(digits, augment.MOST, "step"), once)
    assert not torch.equal(drawn(digits, augment.MOST, "step", number=6), once)
    second = drawn(digits, augment.MOST, "step", ranks=Ranks(rank=1, size=2))
    torch.testing.assert_close(second, once[1::2], atol=1e-6, rtol=0)


def test_a_run_with_augmentation_learns_resumes_exactly_and_validates_on_plain_images(
    digits, tmp_path, monkeypatch
):
    config = TINY.replace(augment="light")
    run = learned_and_resumed(config, digits, tmp_path)
    assert run.config.augmentation == augment.LIGHT
    watch = Watch()
    fit(config.replace(epochs=1), digits, tmp_path / "watched", progress=watch)
    assert f"augmentation: {augment.LIGHT} (--augment light)" in watch.notes
    seen = []
    real = trainer.evaluate
    monkeypatch.setattr(trainer, "evaluate", lambda network, pixels, *rest: real(network, pixels, *rest))
    monkeypatch.setattr(augment, "augment", lambda *args: seen.append(args))
    network, _ = trainer.checkpoint.load(run.checkpoint)
    trainer.evaluate(network, Pixels(digits, torch.device("cpu")), digits.split.validation, run.config)
    assert not seen


def test_the_set_decides_in_a_run(tmp_path):
    aligned = from_arrays("aligned", spots(400, side=8, at=(3, 5), size=(1.0, 3.0)))
    config = TINY.replace(epochs=40, batch=64, augment="auto")
    found = fit(config, aligned, tmp_path, progress=Watch()).config.augmentation
    assert found is not None
    assert found.shift == 0
    assert not found.mirror
