"""Downloads files of public data sets and checks their digests."""

import gzip
import hashlib
import http.client
import shutil
import tempfile
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from vaeserve.bundle.atomic import move_into_place

PIECE = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
ROUNDS = 3  # through all mirrors


# A digest is that of the downloaded file, or of the content that gzip unpacks from it. The second is the same
# for mirrors that compressed the same bytes differently.
DigestOf: TypeAlias = Literal["file", "content"]


class DownloadError(Exception):
    """A file could not be downloaded; the message says from where and what to do."""


def fetch(mirrors: Sequence[str], name: str, folder: Path, sha256: str, *, of: DigestOf = "content") -> Path:
    """The path of `folder`/`name`, a gzip file with this SHA-256 (of the file, or of its unpacked bytes).

    An existing file is checked, never replaced. Otherwise the mirrors are tried in turn; the file gets its
    name once its digest is right. Raises DownloadError.
    """
    path = folder / name
    if path.exists():
        if _digest(path, of) != sha256:
            raise DownloadError(f"{path} is damaged (its SHA-256 differs): delete it to download it again")
        return path
    folder.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}  # the last one of each address
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as work:
        draft = Path(work) / name
        for mirror in [*mirrors] * ROUNDS:
            try:
                _download(mirror + name, draft)
            except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
                failures[mirror + name] = str(error)
                continue
            if _digest(draft, of) == sha256:
                move_into_place(draft, path)
                return path
            failures[mirror + name] = f"the content's SHA-256 is not {sha256}"
    reasons = "".join(f"\n  {address}: {why}" for address, why in failures.items())
    raise DownloadError(f"cannot download {name}. Put it into {folder}, or try again.{reasons}")


def _download(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file, PIECE)
        expected = answer.headers.get("Content-Length")
        if expected is not None and file.tell() < int(expected):
            raise OSError(f"the connection broke after {file.tell()} of {expected} bytes")


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
