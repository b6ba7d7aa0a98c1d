"""Runs an image with Linux namespaces, as `docker run` or docker-compose.yml would.

A container here has its own mounts, processes, network, host name and message queues, a user without
capabilities, and the root filesystem of the image. It has no cgroup and no published ports: tests call it
from inside its network, on the image's own ports.
"""

import ctypes
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.checkout import ROOT

CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Options:
    """How a container is started."""

    image: str
    volumes: tuple[tuple[str, str, bool], ...] = ()  # source, target, read-only
    tmpfs: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    user: str = ""  # empty: the image's
    read_only: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()  # empty: the image's
    unprivileged: bool = False  # without capabilities, and unable to gain any

    def with_sources(self, **folders: Path) -> "Options":
        """The same options with other source folders, given by the last part of the original path."""
        volumes = tuple(
            (str(folders.get(Path(source).name, source)), target, read_only)
            for source, target, read_only in self.volumes
        )
        return replace(self, volumes=volumes)


def from_compose(name: str, command: tuple[str, ...] = (), **variables: str) -> Options:
    """A service of docker-compose.yml; `variables` override the defaults in the file."""

    def resolved(text: str) -> str:
        return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1], found[2]), text)

    file = YAML(typ="safe").load(ROOT / "docker-compose.yml")
    service = file["services"][name]
    known = {"build", "image", "profiles", "ports", "volumes", "tmpfs", "user", "read_only", "environment"}
    known |= {"cap_drop", "security_opt", "restart", "stop_grace_period", "env_file"}
    assert set(service) <= known, f"{set(service) - known} is not supported by the tests; add it"
    return Options(
        image=service["image"],
        volumes=tuple(volume(resolved(each)) for each in service.get("volumes", [])),
        tmpfs=tuple(service.get("tmpfs", [])),
        ports=tuple(resolved(each) for each in service.get("ports", [])),
        user=resolved(service.get("user", "")),
        read_only=service.get("read_only", False),
        environment=tuple((key, str(value)) for key, value in service.get("environment", {}).items()),
        command=command,
        unprivileged=service.get("cap_drop") == ["ALL"]
        and service.get("security_opt") == ["no-new-privileges:true"],
    )


def from_docker_run(line: str) -> Options:
    """The options of a `docker run` command line."""
    words = iter(shlex.split(line.replace("\\\n", " ")))
    assert (next(words), next(words)) == ("docker", "run")
    found: dict[str, list[str]] = {}
    for word in words:
        if word in ("--rm", "--read-only", "--detach"):
            found[word] = []
        elif word.startswith("-"):
            found.setdefault(word, []).append(next(words))
        else:
            break
    known = {"--rm", "--read-only", "--detach", "-p", "-v", "-e", "--tmpfs", "--user", "--cap-drop"}
    known |= {"--security-opt", "--name"}
    assert set(found) <= known, f"{set(found) - known} is not supported by the tests; add it"
    return Options(
        image=word,
        volumes=tuple(volume(each) for each in found.get("-v", [])),
        tmpfs=tuple(found.get("--tmpfs", [])),
        ports=tuple(found.get("-p", [])),
        user="".join(found.get("--user", [])),
        read_only="--read-only" in found,
        environment=tuple((key, value) for key, _, value in (e.partition("=") for e in found.get("-e", []))),
        command=tuple(words),
        unprivileged="--cap-drop" in found,
    )


def volume(text: str) -> tuple[str, str, bool]:
    source, target, *mode = text.split(":")
    return source.replace("$PWD", str(ROOT)), target, mode == ["ro"]


@dataclass
class Container:
    """A running container. `lines` grows with its output."""

    process: subprocess.Popen[str]
    init: int  # the pid of its first process, outside the container
    started: float
    spec: dict[str, Any]
    config: dict[str, Any]
    lines: list[str] = field(default_factory=list)

    @contextmanager
    def network(self) -> Iterator[None]:
        """Put the sockets that this thread opens into the container's network."""
        libc = ctypes.CDLL(None, use_errno=True)

        def enter(file: Any) -> None:
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot enter the container's network")

        with open("/proc/thread-self/ns/net", "rb") as ours, open(f"/proc/{self.init}/ns/net", "rb") as its:
            enter(its)
            try:
                yield
            finally:
                enter(ours)

    def execute(self, *command: str, seconds: float = 30) -> subprocess.CompletedProcess[str]:
        """Run a command as `docker exec` would."""
        user, group = self.spec["user"], self.spec["group"]
        enter = ("nsenter", f"--target={self.init}", "--mount", "--net", "--pid", "--root", "--wd")
        return subprocess.run(
            [*enter, f"--setuid={user}", f"--setgid={group}", *command],
            env=self.spec["environment"],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def healthy(self) -> bool:
        """The result of the image's HEALTHCHECK."""
        kind, *command = self.config["Healthcheck"]["Test"]
        assert kind == "CMD", "use the exec form, because the image may have no shell"
        return self.execute(*command).returncode == 0

    def stop(self, seconds: float = 30) -> int:
        """Stop the container as `docker stop` would, without its final kill; returns the exit status."""
        os.kill(self.init, signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def running(options: Options, config: dict[str, Any], root: Path) -> Iterator[Container]:
    """A running container, killed at the end. `config` and `root` are the image's."""
    user, _, group = (options.user or config["User"]).partition(":")
    spec = {
        "root": str(root),
        "read_only": options.read_only,
        "mounts": [(str((ROOT / source).resolve()), target, ro) for source, target, ro in options.volumes],
        "tmpfs": options.tmpfs,
        "user": int(user),
        "group": int(group or user),
        "folder": config.get("WorkingDir") or "/",
        "environment": environment_of(config) | dict(options.environment),
        "command": [*(config["Entrypoint"] or []), *(options.command or config["Cmd"] or [])],
    }
    for target in (*options.tmpfs, *(target for _, target, _ in options.volumes)):
        (root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)  # as Docker does
    # Docker writes this into every container.
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n", encoding="utf-8")
    unshare = ("unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--kill-child")
    started = time.monotonic()
    process = subprocess.Popen(
        [*unshare, sys.executable, str(Path(__file__).with_name("launch.py")), json.dumps(spec)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    container = Container(process, init_of(process), started, spec, config)
    reader = threading.Thread(target=lambda: container.lines.extend(process.stdout or []))
    reader.start()
    try:
        yield container
    finally:
        if process.poll() is None:
            os.kill(container.init, signal.SIGKILL)  # and with it every process of its namespace
            process.wait(10)
        reader.join(10)
        assert process.stdout is not None
        process.stdout.close()


def init_of(process: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for _ in range(500):
        if found := children.read_text(encoding="ascii").split():
            return int(found[0])
        time.sleep(0.01)
    process.kill()
    raise AssertionError("unshare started no process")


def environment_of(config: dict[str, Any]) -> dict[str, str]:
    pairs = (each.partition("=") for each in config["Env"] or [])
    return {"HOME": "/", **{key: value for key, _, value in pairs}}
