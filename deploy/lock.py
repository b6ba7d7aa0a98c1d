"""Makes the locks of the images from pyproject.toml, with hashes: `make lock`.

A lock is valid for Linux on x86_64 and aarch64 and for every supported Python; uv verifies that before the
lock is written. It names no package index, because the builder of an image may use another one.
"""

import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

DEPLOY = Path(__file__).parent
HEADER = "# Made from pyproject.toml by `make lock`; do not edit.\n"
UV = [str(Path(sysconfig.get_path("scripts")) / "uv"), "--quiet", "--no-config"]
PYTHONS = ("3.11", "3.12", "3.13")
X86, ARM = "x86_64-manylinux_2_28", "aarch64-manylinux_2_28"
# The GPU build has its own name, is released later than the CPU build, and exists for x86_64 only.
GPU_RUNTIME = "onnxruntime-gpu[cuda,cudnn]>=1.31"


def main() -> None:
    project = tomllib.loads(DEPLOY.with_name("pyproject.toml").read_text(encoding="utf-8"))
    service = project["project"]["dependencies"]
    gpu = [GPU_RUNTIME if re.match(r"onnxruntime\b(?!-)", each) else each for each in service]
    write(DEPLOY / "build.lock", project["build-system"]["requires"], (X86, ARM))
    write(DEPLOY / "service.lock", service, (X86, ARM))
    write(DEPLOY / "service-gpu.lock", gpu, (X86,))


def write(lock: Path, requirements: list[str], platforms: tuple[str, ...]) -> None:
    compiled = uv(
        *("pip", "compile", "--universal", "--upgrade", "--python-version", PYTHONS[0]),
        *("--generate-hashes", "--no-header", "--no-annotate", "-"),
        stdin="\n".join(requirements),
    )
    new = lock.with_suffix(".new")
    new.write_text(HEADER + compiled, encoding="utf-8")
    for platform in platforms:
        for python in PYTHONS:
            verify(new, platform, python)
    new.replace(lock)
    print(
        f"{lock.name}: {compiled.count('==')} pins, valid for {', '.join(PYTHONS)} on {', '.join(platforms)}"
    )


def verify(lock: Path, platform: str, python: str) -> None:
    """Exit with uv's message if a pin has no wheel for this platform and Python."""
    with tempfile.TemporaryDirectory() as nowhere:
        uv(
            *("pip", "install", "--dry-run", "--target", nowhere, "--require-hashes"),
            *("--only-binary", ":all:", "--python-platform", platform, "--python-version", python),
            *("-r", str(lock)),
        )


def uv(*arguments: str, stdin: str = "") -> str:
    result = subprocess.run(
        [*UV, *arguments], input=stdin, capture_output=True, text=True, timeout=300, check=False
    )
    if result.returncode:
        sys.exit(result.stderr)
    return result.stdout


if __name__ == "__main__":
    main()
