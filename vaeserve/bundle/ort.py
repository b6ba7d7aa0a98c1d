"""onnxruntime without telemetry; everything here imports it from this module.

From 1.29 on, its builds for Linux and macOS send the names, hashes and timings of models to Microsoft and
leave a device id in the user's cache folder. The only full opt-out is a variable that is read at import.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

__all__ = ["ort"]
