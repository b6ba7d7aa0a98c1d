"""What a bulk job reads: folders, globs, tar archives and lists of paths, as entries in a fixed order.

Finding is apart from reading: a job writes down first what it found, so that it can go on where it was
whatever happens to the folder meanwhile. Nothing here holds more than the names of one folder.
"""

import glob
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LISTS = (".txt", ".lst")
STREAMED = -1  # the offset of members that can only be read in passing: the archive is compressed


class Entry(NamedTuple):
    """One image: a file, or a member of an archive."""

    path: str  # of the file or of the archive
    member: str = ""
    offset: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        """What it is called in the output, always valid Unicode."""
        name = f"{self.path}/{self.member}" if self.member else self.path
        return name.encode("utf-8", "backslashreplace").decode()


class Source(NamedTuple):
    """An entry, and how to get its bytes (OSError if that fails)."""

    entry: Entry
    load: Callable[[], bytes]


def find(sources: Sequence[str]) -> Iterator[Entry]:
    """The images that these words mean, in order; FileNotFoundError for a word that means nothing."""
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
            raise FileNotFoundError(f"{source} is not there")


def read(entries: Iterable[Entry]) -> Iterator[Source]:
    """The entries with their bytes within reach; compressed archives are read along, once."""
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
    """Recursively, in the order that sorting the whole paths would give."""
    with os.scandir(folder) as found:
        names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in found)
    for name in names:
        path = os.path.join(folder, name.rstrip("/"))
        if name.endswith("/"):
            if not os.path.islink(path):  # it could lead in circles
                yield from _folder(path)
        elif os.path.splitext(name)[1].lower() in SUFFIXES:
            yield Entry(path)


def _archive(path: str) -> Iterator[Entry]:
    """Members in the archive's own order; those of a plain tar are read later from where they lie."""
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
        archive.members = []  # type: ignore[attr-defined]  # it keeps them all: of a million, a gigabyte
        if member.isfile() and os.path.splitext(member.name)[1].lower() in SUFFIXES:
            yield member


def _list(path: str) -> Iterator[Entry]:
    """A path a line, relative to where the command runs; empty lines are nothing."""
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
