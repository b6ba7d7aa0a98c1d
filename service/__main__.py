"""The command `vae-serve`: serves models over HTTP, or checks that they could be served."""

import argparse
import logging
import logging.config
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource
from uvicorn.supervisors import Multiprocess

from service.app import create_app
from service.metrics import Metrics
from service.protocol import Http
from service.runtime.bundle import BundleError
from service.runtime.repository import find, open_engine
from service.served import ServedModels, Service, load
from service.settings import MIB, Settings
from service.telemetry import log_config

ABOUT = "Serve the models of a repository: /encode, /decode, /reconstruct and /sample over HTTP."
CHECK = "`vae-serve check PATH` says whether the bundle or the repository at PATH could be served."

# Load balancers keep idle connections for 60 s; who closes first must be them, or a request gets lost.
KEEP_ALIVE = 75
# What is in flight when the service is stopped takes milliseconds; this is for the slowest uploads.
GRACE = 30


def main() -> None:
    """The entry point of `vae-serve`."""
    arguments = sys.argv[1:]
    sys.exit(check(arguments[1:]) if arguments[:1] == ["check"] else serve(settings_from(arguments)))


def settings_from(arguments: list[str]) -> Settings:
    """The settings from flags and environment; says what is wrong with them and exits otherwise."""
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
    """Serve until told to stop; the exit status."""
    logging.config.dictConfig(log_config(settings.log_level))
    # uvicorn stops gracefully on these, then raises them again: then it is time to leave.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        return _fail(
            f"cannot listen on {settings.host}:{settings.port} ({os.strerror(error.errno or 0)}); "
            "stop what is there, or choose another --port"
        )
    url = _url(settings.host, listener.getsockname()[1])
    if settings.workers > 1:
        return _serve_with_workers(settings, listener, url)

    failures: list[str] = []

    def on_loaded(service: Service) -> None:
        if service.failure:
            failures.append(service.failure)
            server.should_exit = True
        else:
            print(banner(settings, service.models, url), flush=True)

    server = uvicorn.Server(_config(settings, app=create_app(settings, on_loaded=on_loaded)))
    server.run(sockets=[listener])
    return _fail(failures[0]) if failures else 0


def _serve_with_workers(settings: Settings, listener: socket.socket, url: str) -> int:
    with ThreadPoolExecutor(1) as thread:
        try:
            print(banner(settings, load(settings, thread, Metrics()), url), flush=True)
        except BundleError as error:
            return _fail(str(error))
    os.environ.update(settings.environment())  # how the workers' create_app() learns of the flags
    config = _config(settings, app="service.app:create_app", factory=True, workers=settings.workers)
    Multiprocess(config, sockets=[listener]).run()
    return 0


def _config(settings: Settings, **more: object) -> uvicorn.Config:
    return uvicorn.Config(
        **more,  # type: ignore[arg-type]
        loop="auto",  # uvloop, where it is installed
        http=Http,
        ws="none",
        lifespan="on",
        log_config=log_config(settings.log_level),
        access_log=False,  # ours has the request id and the time
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens already: a port in use is known before the models are loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048)
    listener.set_inheritable(True)  # for workers
    return listener


def _url(host: str, port: int) -> str:
    if host in ("0.0.0.0", "::"):
        host = "localhost"  # listening everywhere is no address to go to
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _fail(reason: str) -> int:
    print(f"vae-serve: {reason}", file=sys.stderr)
    return 1


def banner(settings: Settings, models: ServedModels, url: str) -> str:
    """What a person wants to know when the service has started."""
    lines = [f"vaeserve {version('vaeserve')} at {url}, documentation at {url}/docs"]
    for model in models.newest():
        manifest = model.manifest
        image = f"{manifest.image.height}×{manifest.image.width}×{manifest.image.channels}"
        latent = "×".join(map(str, manifest.latent.shape))
        default = ", the default" if manifest.name == models.default else ""
        lines.append(f"  {manifest.reference}: images {image}, latents {latent}{default}")
    processes = f"{settings.workers} processes of " if settings.workers > 1 else ""
    threads = settings.model_threads()
    lines += [
        f"  {processes}{threads} model thread{'s' * (threads > 1)}; a request may have "
        f"{settings.max_body / MIB:g} MiB, {settings.max_images} images, {settings.max_samples} samples, "
        f"{settings.max_pixels / 1e6:.3g} megapixels an image",
    ]
    if models.refused:
        lines.append(f"  {len(models.refused)} bundle(s) refused, see the log")
    model_parameter = "" if models.default else f"&model={models.newest()[0].manifest.name}"
    lines.append(f"  curl '{url}/sample?n=64&seed=7{model_parameter}' -H 'Accept: image/png' -o grid.png")
    return "\n".join(lines)


def check(arguments: list[str]) -> int:
    """One line for each bundle; the exit status is 1 when one could not be served, or when there is none."""
    parser = argparse.ArgumentParser(
        "vae-serve check", description="Verify digests, graphs and golden vectors."
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a model repository, or one bundle")
    path = parser.parse_args(arguments).path
    try:
        candidates = [bundle for bundles in find(path).values() for bundle in bundles]
    except BundleError as error:
        return _fail(str(error))
    if not candidates:
        return _fail(f"{path} holds no bundle; a repository has <name>/<version>/manifest.json in it")
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
