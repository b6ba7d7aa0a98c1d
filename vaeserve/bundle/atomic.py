"""Writes files so that a crash leaves the old content or the new, never a part of either."""

import os
import shutil
import tempfile
from pathlib import Path


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace the file `path` with `data` (text as UTF-8) in one step. Raises OSError, as on a full disk."""
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        draft = work / path.name
        draft.write_bytes(data.encode() if isinstance(data, str) else data)
        move_into_place(draft, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def move_into_place(draft: Path, path: Path) -> None:
    """Rename a finished file or flat folder to `path`, on the same file system, once it is on disk.

    A file at `path` is replaced. A folder that is not empty is not: OSError (ENOTEMPTY or EEXIST).
    """
    if draft.is_dir():
        for file in draft.iterdir():
            _flush(file)
    _flush(draft)
    os.replace(draft, path)
    _flush(path.parent)  # the rename itself is a change of the folder


def _flush(path: Path) -> None:
    if os.name != "posix" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
