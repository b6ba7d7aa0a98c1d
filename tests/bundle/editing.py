"""Changes to published bundles, for tests of how they are refused."""

import hashlib
import json
from pathlib import Path

import numpy as np

from tests.bundles import make_draft
from vaeserve.bundle.files import Bundle, publish, read_bundle


def edit(bundle: Path, **changes: object) -> None:
    """Set fields of the manifest; `image__height` is the height of the image."""
    record = json.loads((bundle / "manifest.json").read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = record
        for parent in parents:
            place = place[parent]
        place[last] = value
    (bundle / "manifest.json").write_text(json.dumps(record))


def replace(bundle: Path, name: str, data: bytes) -> None:
    """Replace a file by `data`, with the matching digest in the manifest."""
    (bundle / name).write_bytes(data)
    record = json.loads((bundle / "manifest.json").read_text())
    record["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (bundle / "manifest.json").write_text(json.dumps(record))


def with_arrays(folder: Path, file: str, **changes: np.ndarray) -> Bundle:
    """A bundle published under `folder` with other arrays in one of its .npz files."""
    (folder / "draft").mkdir()
    draft = make_draft(folder / "draft")
    with np.load(draft.folder / file) as archive:
        arrays = dict(archive)
    np.savez(draft.folder / file, **(arrays | changes))
    return read_bundle(publish(folder / "models", "tiny", draft))
