"""Downloads files of public data sets, resumes broken downloads, and checks digests."""

import gzip
import hashlib
import http.client
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

PIECE = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 3  # per mirror; each resumes where the last one stopped


# A digest is that of the downloaded file, or of the content that gzip unpacks from it. The second is the same
# for mirrors that compressed the same bytes differently.
DigestOf: TypeAlias = Literal["file", "content"]


class DownloadError(Exception):
    """A file could not be downloaded; the message says from where and what to do."""


def fetch(mirrors: Sequence[str], name: str, folder: Path, sha256: str, *, of: DigestOf = "content") -> Path:
    """The path of `folder`/`name`, a gzip file with this SHA-256 (of the file, or of its unpacked bytes).

    An existing file is checked, never replaced. Otherwise the mirrors are tried in turn. Incomplete downloads
    stay in `name`.part for the next attempt, and the file gets its name once its digest is right.
    Raises DownloadError.
    """
    path = folder / name
    if path.exists():
        if _digest(path, of) != sha256:
            raise DownloadError(f"{path} is damaged (its SHA-256 differs): delete it to download it again")
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.part"
    failures = []
    for mirror in mirrors:
        try:
            _download(mirror + name, part)
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            failures.append(f"{mirror + name}: {error}")
            continue
        if _digest(part, of) == sha256:
            os.replace(part, path)
            return path
        part.unlink()  # the next attempt would resume from the wrong bytes
        failures.append(f"{mirror + name}: the content's SHA-256 is not {sha256}")
    raise DownloadError(
        f"cannot download {name}. Put it into {folder}, or try again.\n  " + "\n  ".join(failures)
    )


def _download(url: str, part: Path) -> None:
    for attempt in range(ATTEMPTS):
        try:
            _transfer(url, part)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing left to download; the digest decides whether the part is right
                return
            raise  # the mirror refused; another attempt would not help
        except (OSError, http.client.HTTPException):
            if attempt == ATTEMPTS - 1:
                raise


def _transfer(url: str, part: Path) -> None:
    """Append the missing bytes to `part`, or start again if the server does not support ranges."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        resumed = answer.status == 206
        expected = answer.headers.get("Content-Length")
        with part.open("ab" if resumed else "wb") as file:
            arrived = 0
            while piece := answer.read(PIECE):
                file.write(piece)
                arrived += len(piece)
    if expected is not None and arrived < int(expected):
        raise OSError(f"the connection broke after {arrived} of {expected} bytes")


def _digest(path: Path, of: DigestOf) -> str | None:
    """The SHA-256; None if gzip cannot unpack the file."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") if of == "file" else gzip.open(path) as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return None
    return digest.hexdigest()
