"""Finds the processes of a running `vae-serve` through /proc."""

import contextlib
from pathlib import Path


def alive(pid):
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid):
    """All descendants of `pid` that are alive, as {pid: depth}."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(stat.parent.name)] = int(parent)
    found, level, depth = {}, {pid}, 0
    while level:
        depth += 1
        level = {child for child, parent in parents.items() if parent in level}
        found |= dict.fromkeys(level, depth)
    return found


def workers(process):
    """The workers of a service, which are the children of its fork server."""
    return {pid for pid, depth in children(process.pid).items() if depth == 2}
