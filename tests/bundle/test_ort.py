"""onnxruntime sends no telemetry and leaves no files behind."""

import os
import re
import subprocess
import sys

import pytest

from tests.checkout import ROOT


def test_onnxruntime_is_imported_in_one_place():
    """Training also imports its quantization package, but only after the opt-out."""
    for package in ("vaeserve", "service", "training"):
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            found = re.search(r"^\s*(import|from) onnxruntime", text, re.MULTILINE)
            if found and file != ROOT / "vaeserve/bundle/ort.py":
                assert "from vaeserve.bundle.ort import ort" in text[: found.start()], file


@pytest.mark.parametrize("opted_out", [True, False])
def test_no_device_id_and_no_cache_is_written(opted_out, repository, tmp_path):
    """The second case notices when onnxruntime no longer needs the opt-out."""
    module = "from vaeserve.bundle.ort import ort" if opted_out else "import onnxruntime as ort"
    code = f"{module}; ort.InferenceSession({str(repository / 'tiny/1/encoder.onnx')!r})"
    left_out = ("ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME", "GITHUB_ACTIONS", "TF_BUILD")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    if opted_out:
        assert written == []
    elif not written:
        pytest.skip("this onnxruntime writes nothing here without the opt-out")
