"""The schedule of a run: learning rate, weight of the rate, and the end."""

import pytest

from tests.training.runs import TINY
from training.config import TrainConfig, default_batch, resolve
from training.fit import schedule


def test_the_learning_rate_rises_falls_and_ends_near_zero():
    config = TrainConfig(lr=0.1, lr_warmup=0.1)
    rates = [schedule.learning_rate(config, step, 100) for step in range(100)]
    assert 0 < rates[0] < rates[5] < rates[10] == max(rates) == 0.1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-4


def test_the_kl_weight_rises_to_one_and_stays():
    config = TrainConfig(kl_warmup=0.1)
    assert [schedule.kl_weight(config, step, 100) for step in (0, 5, 10, 99)] == [0, 0.5, 1, 1]
    assert schedule.kl_weight(config.replace(kl_warmup=0), 1, 100) == 1


def test_patience_ends_nothing_before_the_warm_up_is_over_or_when_it_is_0():
    plan = schedule.plan(resolved(patience=2, kl_warmup=0.5), 1000, 100)
    assert not plan.over(plan.warm, None)
    best = {"step": plan.evaluate_every}
    assert not plan.over(plan.evaluate_every * 3 - 1, best)
    assert plan.over(plan.evaluate_every * 3, best)
    endless = schedule.plan(resolved(patience=0), 1000, 100)
    assert not endless.over(endless.total - 1, {"step": 1})
    assert endless.over(endless.total, None)


@pytest.mark.parametrize(
    ("images", "validation", "epochs"), [(600, 75, 500), (1412, 180, 226), (54_000, 6000, 24)]
)
def test_a_run_is_validated_20_to_40_times_which_costs_little(images, validation, epochs):
    config = resolve(TrainConfig(epochs=epochs), name="a", train=images, image=(8, 8, 1), binary=False)
    plan = schedule.plan(config, images, validation)
    times = len([step for step in range(1, plan.total + 1) if plan.evaluates(step)])
    assert 20 <= times <= 41
    assert times * validation * schedule.EVALUATION_COST <= 0.06 * epochs * images


def test_a_million_images_are_validated_on_some_of_their_validation_images():
    config = resolve(TrainConfig(epochs=10), name="a", train=800_000, image=(8, 8, 1), binary=False)
    plan = schedule.plan(config, 800_000, 100_000)
    assert 10_000 <= plan.evaluated < 100_000
    times = plan.total // plan.evaluate_every
    assert times * plan.evaluated * schedule.EVALUATION_COST <= 0.06 * 10 * 800_000
    assert schedule.plan(config, 54_000, 6000).evaluated == 6000


def test_small_sets_get_as_many_steps_as_large_ones_in_smaller_batches():
    for images in (600, 1631, 54_000):
        config = resolve(TrainConfig(), name="a", train=images, image=(8, 8, 1), binary=False)
        assert schedule.plan(config, images, images // 8).total == pytest.approx(10_000, rel=0.1)
    batches = [default_batch(images) for images in (600, 1631, 54_000)]
    assert batches == sorted(set(batches))


def resolved(**settings):
    config = TINY.replace(epochs=1000, **settings)
    return resolve(config, name="a", train=1000, image=(8, 8, 1), binary=False)
