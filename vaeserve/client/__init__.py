"""Python client of a vaeserve service: plain HTTP, numpy in and out."""

from vaeserve.client.client import Client, Posterior, Reconstructions, Samples
from vaeserve.client.errors import BadRequest, ClientError, Overloaded, ServerFault, Unreachable
from vaeserve.client.latent import Scores, Sum, Traversal

__all__ = [
    "BadRequest",
    "Client",
    "ClientError",
    "Overloaded",
    "Posterior",
    "Reconstructions",
    "Samples",
    "Scores",
    "ServerFault",
    "Sum",
    "Traversal",
    "Unreachable",
]
