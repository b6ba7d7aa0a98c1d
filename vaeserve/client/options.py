"""The options that commands of `vae-client` share: which service to ask, and how to send many requests."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any

import typer

from vaeserve.client.client import Client


@dataclass(frozen=True)
class Service:
    """The service and model that a command uses."""

    url: Annotated[str, typer.Option(envvar="VAESERVE_URL", help="Address of the service.")] = (
        "http://127.0.0.1:8000"
    )
    api_key: Annotated[str | None, typer.Option(envvar="VAESERVE_API_KEY", show_envvar=True)] = None
    model: Annotated[str | None, typer.Option(help="name or name@version. [default: the service's]")] = None

    def client(self) -> Client:
        """A client of that service and model."""
        return Client(self.url, api_key=self.api_key, model=self.model)


@dataclass(frozen=True)
class BulkService(Service):
    """The service of a bulk command, and the limits of its requests."""

    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests in flight at a time.")] = 4
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a service that is unreachable or overloaded.")
    ] = 300


def with_service(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """The function with the options of its parameter `service` in place of that parameter."""
    *own, service = inspect.signature(function).parameters.values()
    shared = inspect.signature(service.annotation).parameters.values()

    @wraps(function)
    def run(**values: Any) -> int | None:
        options = {each.name: values.pop(each.name) for each in shared}
        return function(**values, service=service.annotation(**options))

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *shared)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # where typer looks
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run
