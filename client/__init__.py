"""Python client of a vaeserve service: plain HTTP, numpy in and out."""

from client.client import Client, Posterior, Reconstructions, Samples
from client.errors import BadRequest, ClientError, Overloaded, ServerFault, Unreachable
from client.latent import Scores, Sum, Traversal

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
