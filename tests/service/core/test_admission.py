"""The rate of completion, and what follows from it."""

import numpy as np
import pytest

from service.core import admission as module
from service.core.admission import HORIZON, Admission
from service.core.problems import Overloaded


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


def work(admission, clock, rows, seconds):
    admission.add(rows)
    clock[0] += seconds
    admission.remove(rows, done=rows)


def test_the_rate_covers_only_the_seconds_in_which_there_was_work(clock):
    admission = Admission(max_rows=1000, max_bytes=1000)
    for _ in range(100):
        work(admission, clock, 5, 0.1)
        clock[0] += 10  # idle
    assert admission.rate == pytest.approx(50)
    for _ in range(100):
        work(admission, clock, 5, 1)
    assert admission.rate == pytest.approx(5, rel=0.01)


def test_the_rate_sets_retry_after_and_lowers_the_limit_on_rows(clock):
    admission = Admission(max_rows=1000, max_bytes=1000, timeout=20)
    work(admission, clock, 40, 1)
    assert admission.rate is None  # one second of work is not enough
    assert admission.max_rows == 1000
    for _ in range(50):
        work(admission, clock, 40, 1)
    assert admission.max_rows == pytest.approx(400)  # at 40 rows a second, in half of the timeout
    admission.add(500)
    with pytest.raises(Overloaded) as refused:
        admission.check_rows()
    assert refused.value.headers["Retry-After"] == "13"
    admission.check_rows(held=500)  # all pending rows are its own
    admission.add(10_000)
    with pytest.raises(Overloaded) as refused:
        admission.check_rows()
    assert refused.value.headers["Retry-After"] == "60"


def test_rows_that_are_not_done_in_time_lower_the_rate_and_refused_ones_do_not(clock):
    admission = Admission(max_rows=1000, max_bytes=1000, timeout=20)
    for _ in range(50):
        work(admission, clock, 40, 1)
    for done, expected in ((None, 40), (0, 40 * np.exp(-HORIZON / HORIZON))):
        admission.add(1)
        clock[0] += HORIZON
        admission.remove(1, done=done)
        assert admission.rate == pytest.approx(expected, rel=0.4)
    while admission.rate > 0.1:
        admission.add(1)
        clock[0] += HORIZON
        admission.remove(1, done=0)
    admission.check_rows()  # a request that finds nothing pending gets in
