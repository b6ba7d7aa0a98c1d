"""Builds the images of the Dockerfile with buildah and debootstrap, without an engine or a registry.

Everything is in one folder that is removed afterwards; the machine's own storage stays untouched.
"""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.checkout import ROOT

NEEDED = ("buildah", "debootstrap", "unshare", "nsenter")
BASE = "docker.io/library/python:3.12-slim"  # the image in FROM, replaced by the one made below
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
# pip's settings for reaching a package index. They go into the base image, which is not kept.
PIP_KEYS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "trusted-host",
    "proxy",
    "timeout",
    "default-timeout",
)


class Store:
    """Images and their root filesystems, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = BASE
        self.local_indexes: list[str] = []

    def buildah(self, *arguments: str, seconds: float = 60) -> str:
        # vfs and chroot work on every kernel and inside other containers. buildah ignores STORAGE_DRIVER
        # when --root is given.
        places = ("--root", str(self.folder / "root"), "--runroot", str(self.folder / "runroot"))
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self.folder)}
        return run(
            "buildah", *places, "--storage-driver", "vfs", *arguments, seconds=seconds, env=environment
        )

    def make_base(self) -> None:
        """Make a Debian image with Python under the name of the official slim image."""
        container = self.buildah("from", "scratch").strip()
        root = Path(self.buildah("mount", container).strip())
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), seconds=300)
        for unneeded in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
            shutil.rmtree(root / unneeded)
        self._let_pip_reach_packages(root)
        self.buildah("commit", "--format", "docker", "--rm", "--quiet", container, BASE, seconds=120)

    def _let_pip_reach_packages(self, root: Path) -> None:
        settings = {}
        for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
            key, value = line.split("=", 1)
            settings[key.rpartition(".")[2]] = ast.literal_eval(value)  # the environment comes last
        lines = [f"{key} = {settings[key]}" for key in PIP_KEYS if key in settings]
        if certificate := settings.get("cert"):
            shutil.copy(certificate, root / "etc/pip.crt")
            lines.append("cert = /etc/pip.crt")
        (root / "etc/pip.conf").write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
        for word in " ".join(settings.get(key, "") for key in PIP_KEYS).split():
            path = word.removeprefix("file://")
            if path.startswith("/") and Path(path).is_dir():
                # An index in a folder keeps its files next to `simple`.
                self.local_indexes.append(str(Path(path).parent if path.endswith("/simple") else path))

    def build(self, target: str, *options: str, seconds: float = 240) -> str:
        """Build one target of the Dockerfile; returns the name of the image."""
        volumes = [f"--volume={path}:{path}:ro" for path in self.local_indexes]
        self.buildah(
            *("bud", "--format", "docker", "--pull-never", "--network", "host", "--target", target),
            *(*volumes, *options, "--tag", f"vaeserve-{target}", str(ROOT)),
            seconds=seconds,
        )
        return f"vaeserve-{target}"

    def config(self, image: str) -> dict[str, Any]:
        """The image's entry point, environment, user, health check, …"""
        inspected: dict[str, Any] = json.loads(self.buildah("inspect", "--type", "image", image))
        config: dict[str, Any] = inspected["Docker"]["config"]
        return config

    @contextmanager
    def filesystem(self, image: str) -> Iterator[Path]:
        """The root filesystem of a fresh container of the image."""
        container = self.buildah("from", "--pull-never", image, seconds=120).strip()
        try:
            yield Path(self.buildah("mount", container).strip())
        finally:
            self.buildah("rm", container)

    def remove(self) -> None:
        """Unmount and delete everything, in any state."""
        for line in reversed(Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()):
            if (mount := line.split()[1]).startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(self.folder)


@contextmanager
def store() -> Iterator[Store]:
    """A store in a temporary folder, removed at the end even if a build failed."""
    images = Store(Path(tempfile.mkdtemp(prefix="vaeserve-images-")))
    try:
        yield images
    finally:
        images.remove()


def run(*command: str, seconds: float = 60, env: dict[str, str] | None = None) -> str:
    """The output of the command. Raises if it fails; kills its process group after `seconds`."""
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=seconds)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, f"{' '.join(command)}\n{out[-3000:]}\n{errors[-3000:]}"
    return out


def size(folder: Path) -> int:
    """Bytes of the files in a folder, each hard-linked file once: the unpacked size of an image."""
    seen: dict[int, int] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        seen[status.st_ino] = status.st_size if path.is_file() and not path.is_symlink() else 0
    return sum(seen.values())
