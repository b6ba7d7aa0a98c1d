from vaeserve.bundle.calibration import Scores, log_weights, score, squared_error

__all__ = ["Scores", "log_weights", "score", "squared_error"]
