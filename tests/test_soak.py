"""Runs `make soak` for half a minute."""

import subprocess
import sys

import pytest

from tests.checkout import ROOT


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of another process from /proc")
def test_half_a_minute_at_twice_the_admitted_load():
    command = [sys.executable, "-m", "benchmarks.soak", "--seconds", "30", "--timeout", "30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 5
