"""Many calls at once whose results are wanted one after the other."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(pool: ThreadPoolExecutor, jobs: Iterable[Callable[[], T]], most: int) -> Iterator[T]:
    """The results in the order of the jobs, and never more than `most` that nobody has taken yet."""
    waiting: deque[Future[T]] = deque()
    for job in jobs:
        if len(waiting) == most:
            yield waiting.popleft().result()
        waiting.append(pool.submit(job))
    while waiting:
        yield waiting.popleft().result()
