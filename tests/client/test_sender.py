"""The requests of a bulk job: retries, the limit of requests in flight, and files that are refused."""

import threading
import time

import numpy as np
import pytest

from vaeserve.client.bulk.sender import Sender
from vaeserve.client.bulk.sources import Entry, read
from vaeserve.client.bulk.throttle import ConcurrencyLimit
from vaeserve.client.errors import BadRequest, Overloaded, ServerFault, Unreachable


def overloaded(seconds):
    error = Overloaded(429, "overloaded", "later", "id", [])
    error.retry_after = seconds
    return error


def test_the_limit_is_halved_once_a_round_and_grows_again():
    limit = ConcurrencyLimit(8)
    started = time.monotonic()
    for _ in range(8):
        limit.overloaded(started, 0)
    assert limit.limit == 4
    limit.overloaded(time.monotonic() + 1, 0)
    assert limit.limit == 2
    for _ in range(100):
        limit.succeeded()
    assert limit.limit == 8


def test_requests_wait_for_retry_after_and_stay_below_the_limit():
    limit, inside, most = ConcurrencyLimit(8), [], []

    def visit():
        with limit:
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    limit.overloaded(time.monotonic(), 0.2)
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
def test_a_request_is_repeated_until_it_succeeds(failure, monkeypatch):
    monkeypatch.setattr("vaeserve.client.bulk.sender.LONGEST_WAIT", 0.01)
    failures = [failure] * 3

    def call(first, files):
        if failures:
            raise failures.pop()
        return {"mean": np.zeros((len(files), 1))}

    rows, failed = Sender(concurrency=2, patience=60).files(call, sources(3))
    assert [indices for indices, _ in rows] == [[0, 1, 2]]
    assert not failed
    assert not failures


def test_the_job_gives_up_after_its_patience():
    def call(first, files):
        raise overloaded(0.01)

    with pytest.raises(Overloaded):
        Sender(concurrency=2, patience=0.05).files(call, sources(3))


def sources(count):
    entries = [(i, next(read([Entry(f"{i}.png")]))) for i in range(count)]
    return [(i, source._replace(load=(lambda i=i: b"%d" % i))) for i, source in entries]


@pytest.mark.parametrize("pointing", [True, False])
def test_refused_files_do_not_affect_the_others(pointing):
    bad = {b"3", b"4", b"90", b"127"}
    requests = []

    def call(first, files):
        requests.append(len(files))
        assert first == int(files[0])
        at = next((at for at, file in enumerate(files) if file in bad), None)
        if at is not None:
            errors = [{"pointer": f"/images/{at}"}] if pointing else []
            raise BadRequest(422, "bad-image", "is broken", "id", errors)
        return {"mean": np.array([[float(file)] for file in files])}

    rows, failed = Sender(concurrency=1, patience=60).files(call, sources(128))
    assert sorted(each.entry for each in failed) == [3, 4, 90, 127]
    done = {
        i: value[0] for indices, columns in rows for i, value in zip(indices, columns["mean"], strict=True)
    }
    assert done == {i: i for i in range(128) if i not in (3, 4, 90, 127)}
    assert len(requests) < (15 if pointing else 60)


@pytest.mark.parametrize(("status", "kind"), [(401, BadRequest), (409, BadRequest), (500, ServerFault)])
def test_an_error_that_no_file_causes_ends_the_job(status, kind):
    def call(first, files):
        raise kind(status, "slug", "says no", "id", [])

    with pytest.raises(kind, match="says no"):
        Sender(concurrency=1, patience=0).files(call, sources(4))
