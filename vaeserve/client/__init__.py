"""The client of a vaeserve service: plain HTTP, with numpy arrays in and out.

    from vaeserve import Client
    from vaeserve.client.errors import Overloaded

Nothing is imported here, so that `vae-client` can name a package that is missing.
"""
