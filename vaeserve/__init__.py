"""Two names: `Client` calls a vaeserve service over HTTP, `open_bundle` runs a model without a service.

Both are imported when they are first used, because each needs an extra of its own: `Client` needs
`vaeserve[client]`, `open_bundle` needs the base install.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaeserve.bundle.engine import open_bundle
    from vaeserve.client.client import Client

__all__ = ["Client", "open_bundle"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        try:
            from vaeserve.client.client import Client
        except ModuleNotFoundError as error:
            message = f"Client needs {error.name}: pip install 'vaeserve[client]'"
            raise ImportError(message, name=error.name) from None
        return Client
    if name == "open_bundle":
        from vaeserve.bundle.engine import open_bundle

        return open_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
