"""Runs numpy work and codecs beside the event loop, if there is enough of it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vaeserve.bundle.cpus import usable_cpus

# Work on fewer numbers than this takes less than a millisecond or two. More would make every other request
# wait; for less, the way to another thread and back costs more than the work.
SMALL_VALUES = 1 << 14

T = TypeVar("T")


class Pool(ThreadPoolExecutor):
    """A thread for each CPU that the process may use, four at most."""

    def __init__(self) -> None:
        super().__init__(min(4, usable_cpus()), thread_name_prefix="codec")

    async def run(self, values: int, function: Callable[[], T]) -> T:
        """Call `function` here, or in the pool if it works on many values."""
        if values <= SMALL_VALUES:
            return function()
        return await asyncio.get_running_loop().run_in_executor(self, function)
