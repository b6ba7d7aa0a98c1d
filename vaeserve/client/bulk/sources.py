"""Finds and reads the images of a bulk job: in folders, globs, tar archives and lists of paths.

Finding is separate from reading. A job first writes the list of what it found, so that it can resume even if
the folder changes. Only the names of one folder are in memory at a time.
"""

import glob
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vaeserve.client.formats import SUFFIXES

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LISTS = (".txt", ".lst")
STREAMED = -1  # the offset of members of a compressed archive, which can only be read in sequence


class Entry(NamedTuple):
    """One image: a file, or a member of an archive."""

    path: str  # of the file, or of the archive
    member: str = ""
    offset: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        """Its name in the output, always valid Unicode."""
        name = f"{self.path}/{self.member}" if self.member else self.path
        return name.encode("utf-8", "backslashreplace").decode()


class Source(NamedTuple):
    """An entry, and a function that reads its bytes or raises OSError."""

    entry: Entry
    load: Callable[[], bytes]


def find(sources: Sequence[str]) -> Iterator[Entry]:
    """The images in these sources, in order; FileNotFoundError for a source that does not exist."""
    for source in sources:
        if os.path.isdir(source):
            yield from _folder(source)
        elif os.path.isfile(source):
            if source.lower().endswith(TARS):
                yield from _archive(source)
            elif source.lower().endswith(LISTS):
                yield from _list(source)
            else:
                yield Entry(source)
        elif glob.has_magic(source):
            matches = glob.iglob(source, recursive=True)
            for path in sorted(f"{path}/" if os.path.isdir(path) else path for path in matches):
                yield from _folder(path.rstrip("/")) if path.endswith("/") else [Entry(path)]
        else:
            raise FileNotFoundError(f"{source} does not exist")


def read(entries: Iterable[Entry]) -> Iterator[Source]:
    """Each entry with a function that reads it. A compressed archive is read once, in sequence."""
    archive: str | None = None
    members: Iterator[tuple[str, bytes]] = iter(())
    for entry in entries:
        if entry.offset != STREAMED:
            yield Source(entry, partial(_read, entry))
            continue
        if entry.path != archive:
            archive, members = entry.path, _stream(entry.path)
        content = next((content for name, content in members if name == entry.member), None)
        yield Source(entry, partial(_present, entry, content))


def _folder(folder: str) -> Iterator[Entry]:
    """The images of a folder, recursively, in the order of the sorted paths."""
    with os.scandir(folder) as found:
        names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in found)
    for name in names:
        path = os.path.join(folder, name.rstrip("/"))
        if name.endswith("/"):
            if not os.path.islink(path):  # it could point to a parent folder
                yield from _folder(path)
        elif os.path.splitext(name)[1].lower() in SUFFIXES:
            yield Entry(path)


def _archive(path: str) -> Iterator[Entry]:
    """The images of an archive, in its order. Members of a plain tar have their offset, to be read later."""
    compressed = _is_compressed(path)
    with tarfile.open(path, "r|*" if compressed else "r:") as archive:
        for member in _members(archive):
            yield Entry(path, member.name, STREAMED if compressed else member.offset_data, member.size)


def _is_compressed(path: str) -> bool:
    try:
        tarfile.open(path, "r:").close()
    except tarfile.ReadError:
        return True
    return False


def _stream(path: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r|*") as archive:
        for member in _members(archive):
            file = archive.extractfile(member)
            yield member.name, file.read() if file else b""


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all: 1 GB for a million
        if member.isfile() and os.path.splitext(member.name)[1].lower() in SUFFIXES:
            yield member


def _list(path: str) -> Iterator[Entry]:
    """One path per line, relative to the current folder. Empty lines are skipped."""
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            if name := line.rstrip("\r\n"):
                yield Entry(name)


def _read(entry: Entry) -> bytes:
    if not entry.member:
        return Path(entry.path).read_bytes()
    with open(entry.path, "rb") as archive:
        archive.seek(entry.offset)
        return archive.read(entry.size)


def _present(entry: Entry, content: bytes | None) -> bytes:
    if content is None:
        raise FileNotFoundError(f"{entry.name} is no longer in the archive")
    return content
