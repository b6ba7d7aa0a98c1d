"""Files of public data sets: from the folder if they lie there, else downloaded, resumed and checked."""

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
ATTEMPTS = 3  # per mirror; each goes on where the last one broke off


# What a digest is of: the file as it is downloaded, or what gzip unpacks from it. The second is the same at
# mirrors that packed the same bytes each for themselves.
DigestOf: TypeAlias = Literal["file", "content"]


class DownloadError(Exception):
    """A file could not be had; the message says from where and what to do."""


def fetch(mirrors: Sequence[str], name: str, folder: Path, sha256: str, *, of: DigestOf = "content") -> Path:
    """The path of `folder`/`name`, a gzip file that has this SHA-256, or whose unpacked bytes have it.

    A file that is there is checked, never replaced. Otherwise the mirrors are tried in turn; what has arrived
    waits in `name`.part for the next attempt, and the file takes its name only when its digest is right.
    Raises DownloadError.
    """
    path = folder / name
    if path.exists():
        if _digest(path, of) != sha256:
            raise DownloadError(
                f"{path} is damaged (its SHA-256 differs): delete it, and it is downloaded again"
            )
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
        part.unlink()  # nothing wrong is kept, or the next attempt would go on from it
        failures.append(f"{mirror + name}: the content's SHA-256 is not {sha256}")
    raise DownloadError(
        f"cannot download {name}. Put it into {folder} yourself, or try again.\n  " + "\n  ".join(failures)
    )


def _download(url: str, part: Path) -> None:
    for attempt in range(ATTEMPTS):
        try:
            _transfer(url, part)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is as long as the file, or longer: let its digest decide
                return
            raise  # the mirror said no; asking again will not change it
        except (OSError, http.client.HTTPException):
            if attempt == ATTEMPTS - 1:
                raise


def _transfer(url: str, part: Path) -> None:
    """Append to `part` what is missing, or start anew where the server does not know ranges."""
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
    """None where nothing can be unpacked."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") if of == "file" else gzip.open(path) as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return None
    return digest.hexdigest()
