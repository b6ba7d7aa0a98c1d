"""Finds bundles in a model repository and opens the newest good version of each."""

from pathlib import Path

from service.runtime.bundle import MANIFEST, BundleError, read_bundle, versions
from service.runtime.engine import Engine


class Repository:
    """The models of one folder: a repository `<name>/<version>/…`, or one bundle.

    `engines[name][version]` is what is loaded; `refused[path]` is why a version is not.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self.path = path
        self.threads = threads
        self.engines: dict[str, dict[int, Engine]] = {}
        self.refused: dict[str, str] = {}

    def load(self) -> None:
        """Open the newest version of each model that is good, passing over those that are not."""
        for candidates in find(self.path).values():
            for path in reversed(candidates):
                try:
                    engine = open_engine(path, threads=self.threads)
                except BundleError as error:
                    self.refused[str(path)] = str(error)
                else:
                    manifest = engine.manifest
                    self.engines.setdefault(manifest.name, {})[manifest.version] = engine
                    break


def find(path: Path) -> dict[str, list[Path]]:
    """The bundle folders under `path` by model name, oldest version first.

    `path` is a repository or one bundle; BundleError when it is neither. Nothing is opened: what
    is in a folder is for `open_engine` to judge.
    """
    if (path / MANIFEST).is_file():
        return {path.resolve().parent.name: [path]}
    if not path.is_dir():
        raise BundleError(f"{path} is no folder; give a model repository (<name>/<version>/) or one bundle")
    found = {
        home.name: [home / str(version) for version in versions(home)]
        for home in sorted(path.iterdir())
        if home.is_dir() and not home.name.startswith(".")
    }
    return {name: paths for name, paths in found.items() if paths}


def open_engine(path: Path, *, threads: int = 1) -> Engine:
    """Verify and open the bundle at `path`; its folder must agree with what its manifest says it is."""
    bundle = read_bundle(path)
    manifest, folder = bundle.manifest, path.resolve()
    if folder.name.isdecimal() and (folder.parent.name, folder.name) != (
        manifest.name,
        str(manifest.version),
    ):
        raise BundleError(
            f"{path} says it is {manifest.reference}; put it at {manifest.name}/{manifest.version} "
            "or publish it under the name that you want"
        )
    return Engine(bundle, threads=threads)
