"""The command `vae-serve`: serves models over HTTP, or checks that they can be served."""

import argparse
import os
import socket
import sys
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource

from service.server.workers import serve_with_workers
from service.settings import Settings, WrongSettings

ABOUT = "Serve the models of a repository: /encode, /decode, /reconstruct and /sample over HTTP."
CHECK = "`vae-serve check PATH` verifies the bundle or the repository at PATH."


def main() -> None:
    """The entry point of `vae-serve`."""
    arguments = sys.argv[1:]
    sys.exit(check(arguments[1:]) if arguments[:1] == ["check"] else serve(settings_from(arguments)))


def settings_from(arguments: list[str]) -> Settings:
    """The settings from flags and environment. Exits with status 2 and a message when they are invalid."""
    parser = argparse.ArgumentParser("vae-serve", description=ABOUT, epilog=CHECK)
    parser.add_argument("--version", action="version", version=f"vaeserve {version('vaeserve')}")
    source: CliSettingsSource[Settings] = CliSettingsSource(Settings, root_parser=parser)
    try:
        return CliApp.run(Settings, cli_args=arguments, cli_settings_source=source)
    except ValidationError as error:
        for each in error.errors():
            name = str(each["loc"][0])
            flag = name.replace("_", "-")
            print(f"vae-serve: --{flag} or VAESERVE_{name.upper()}: {each['msg']}", file=sys.stderr)
        sys.exit(2)


def serve(settings: Settings) -> int:
    """Serve until a signal; returns the exit status."""
    try:
        settings.check()
        listener = listen(settings.host, settings.port)
    except WrongSettings as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(
            f"cannot listen on {settings.host}:{settings.port} ({os.strerror(error.errno or 0)}); "
            "stop the program that uses it, or choose another --port"
        )
    url = _url(settings, listener.getsockname()[1])
    if settings.processes() > 1:
        return serve_with_workers(settings, listener, url)
    from service.server.server import serve_alone  # a supervisor does not need these imports

    serve_alone(settings, listener, url)
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, opened before the models are loaded so that a port in use fails at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def _url(settings: Settings, port: int) -> str:
    host = settings.host
    if host in ("0.0.0.0", "::"):
        host = "localhost"  # a wildcard is not an address to connect to
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _fail(reason: str) -> int:
    print(f"vae-serve: {reason}", file=sys.stderr)
    return 1


def check(arguments: list[str]) -> int:
    """Print one line for each bundle; returns 1 if a bundle cannot be served or there is none, else 0."""
    parser = argparse.ArgumentParser(
        "vae-serve check", description="Verify digests, graphs and golden vectors."
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a model repository, or one bundle")
    path = parser.parse_args(arguments).path
    from vaeserve.bundle.files import BundleError
    from vaeserve.bundle.repository import find, open_engine

    try:
        candidates = [bundle for bundles in find(path).values() for bundle in bundles]
    except BundleError as error:
        return _fail(str(error))
    if not candidates:
        return _fail(f"{path} contains no bundle; a repository has <name>/<version>/manifest.json")
    bad = 0
    for bundle in candidates:
        try:
            print(f"good  {open_engine(bundle).manifest.reference}  {bundle}")
        except BundleError as error:
            bad += 1
            print(f"bad   {error}")
    return 1 if bad else 0


if __name__ == "__main__":
    main()
