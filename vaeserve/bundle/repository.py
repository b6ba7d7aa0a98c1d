"""Finds bundles in a model repository and keeps the newest good versions of each open."""

from pathlib import Path

from vaeserve.bundle.engine import Engine, Provider, check_provider
from vaeserve.bundle.files import MANIFEST, BundleError, read_bundle, versions


class Repository:
    """The models of one folder: a repository `<name>/<version>/…`, or one bundle.

    `engines[name][version]` are open; `refused[path]` is the reason why a version is not. `keep` is the
    number of newest good versions of each model that stay open; None keeps all.
    """

    def __init__(
        self, path: Path, *, threads: int = 1, keep: int | None = 1, provider: Provider = "cpu"
    ) -> None:
        self.path = path
        self.threads = threads
        self.provider = provider
        self.keep = keep
        self.engines: dict[str, dict[int, Engine]] = {}
        self.refused: dict[str, str] = {}
        self._state: dict[Path, object] = {}  # of refused folders, when they were refused

    def load(self) -> None:
        """Open new good versions, and drop those that are gone or replaced.

        A refused folder is not tried again until it changes on disk. The last version of a model stays open
        even if its folder is gone: a mistake on disk must not interrupt the service.
        """
        check_provider(self.provider)
        found = find(self.path)
        engines = dict(self.engines)  # replaced as a whole, because other threads may read it
        for candidates in found.values():
            if kept := self._newest(candidates):
                engines[kept[0].manifest.name] = {engine.manifest.version: engine for engine in kept}
        self.engines = engines
        there = {str(path) for candidates in found.values() for path in candidates}
        self.refused = {path: reason for path, reason in self.refused.items() if path in there}

    def _newest(self, candidates: list[Path]) -> list[Engine]:
        opened = {engine.bundle.path: engine for each in self.engines.values() for engine in each.values()}
        good: list[Engine] = []
        for path in reversed(candidates):
            if engine := opened.get(path) or self._open(path):
                good.append(engine)
            if len(good) == self.keep:
                break
        return good

    def _open(self, path: Path) -> Engine | None:
        state = _state(path)
        if str(path) in self.refused and self._state.get(path) == state:
            return None
        try:
            engine = open_engine(path, threads=self.threads, provider=self.provider)
        except Exception as error:  # one bad bundle must not keep the others from being served
            known = isinstance(error, BundleError)
            reason = str(error) if known else f"{path} cannot be opened ({error!r}); publish it again"
            self.refused[str(path)], self._state[path] = reason, state
            return None
        self.refused.pop(str(path), None)
        return engine


def find(path: Path) -> dict[str, list[Path]]:
    """The bundle folders under `path` by model name, oldest version first.

    `path` is a repository or one bundle; BundleError if it is neither. Nothing is opened or checked here:
    `open_engine` does that.
    """
    if (path / MANIFEST).is_file():
        return {path.resolve().parent.name: [path]}
    if not path.is_dir():
        raise BundleError(
            f"{path} is not a folder; give a model repository (<name>/<version>/) or one bundle"
        )
    found = {
        home.name: [home / str(version) for version in versions(home)]
        for home in sorted(path.iterdir())
        if home.is_dir() and not home.name.startswith(".")
    }
    return {name: paths for name, paths in found.items() if paths}


def open_engine(path: Path, *, threads: int = 1, provider: Provider = "cpu") -> Engine:
    """Verify and open the bundle at `path`; BundleError if its folder contradicts its manifest."""
    bundle = read_bundle(path)
    manifest, folder = bundle.manifest, path.resolve()
    if folder.name.isdecimal() and (folder.parent.name, folder.name) != (
        manifest.name,
        str(manifest.version),
    ):
        raise BundleError(
            f"{path} says it is {manifest.reference}; put it at {manifest.name}/{manifest.version} "
            "or publish it under another name"
        )
    return Engine(bundle, threads=threads, provider=provider)


def _state(path: Path) -> object:
    """A value that changes when a file of the bundle changes, appears or disappears."""
    try:
        files = [(file.name, file.lstat()) for file in sorted(path.iterdir())]
    except OSError:
        return None
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in files]
