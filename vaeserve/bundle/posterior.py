from vaeserve.bundle.engine import Posterior

__all__ = ["Posterior"]
