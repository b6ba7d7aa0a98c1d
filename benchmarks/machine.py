"""Reads the CPU time of the machine and of processes, and signals processes. Linux only: it reads /proc."""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")  # ticks a second, the unit of the counters in /proc


@dataclass(frozen=True)
class Cpu:
    """CPU seconds since the boot, summed over all CPUs."""

    busy: float
    idle: float
    stolen: float  # the host gave them to other machines

    def __sub__(self, other: "Cpu") -> "Cpu":
        return Cpu(self.busy - other.busy, self.idle - other.idle, self.stolen - other.stolen)

    @property
    def total(self) -> float:
        return self.busy + self.idle + self.stolen


def cpu() -> Cpu:
    """The first line of /proc/stat. `user` already includes the time of guests."""
    user, nice, system, idle, iowait, irq, softirq, steal, *_ = (
        int(value) / TICKS for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return Cpu(user + nice + system + irq + softirq, idle + iowait, steal)


def tree(root: int) -> list[int]:
    """The process and all its descendants, itself first."""
    children: dict[int, list[int]] = {}
    for pid, fields in _stats():
        children.setdefault(int(fields[1]), []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def used(pids: Iterable[int]) -> float:
    """CPU seconds of these processes and of their children that have been waited for."""
    wanted = set(pids)
    return sum(
        sum(int(value) for value in fields[11:15]) / TICKS for pid, fields in _stats() if pid in wanted
    )


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    """Send the signal to each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _stats() -> Iterator[tuple[int, list[str]]]:
    """Pairs of a pid and the fields of /proc/<pid>/stat after the name, which may contain blanks."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                yield int(folder.name), (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended
                continue
