from vaeserve.bundle.prior import SEEDS, noise

__all__ = ["SEEDS", "noise"]
