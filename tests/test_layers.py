"""Who may import whom: the rules that keep the service small, and trainer and client apart from it."""

import ast
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT

BUNDLE = {"vaeserve.bundle", "numpy", "PIL", "pydantic", "onnxruntime"}
ALLOWED = {
    "vaeserve/bundle": BUNDLE,
    "vaeserve/client": {"vaeserve.client", "httpx", "numpy", "typer", "rich", "click", "pyarrow"},
    "vaeserve": {"vaeserve.bundle", "vaeserve.client"},
    "service": BUNDLE
    | {"service", "fastapi", "starlette", "uvicorn", "orjson", "pydantic_settings", "fastapi_offline"}
    | {"prometheus_client", "python_multipart"},
    "training": BUNDLE
    | {"training", "torch", "onnx", "scipy", "sklearn", "matplotlib", "typer", "rich", "click"},
}


def imported(file: Path) -> set[str]:
    """Every module that the file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write the import in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package(file: Path) -> str:
    path = file.relative_to(ROOT).as_posix()
    return max((name for name in ALLOWED if path.startswith(f"{name}/")), key=len)


@pytest.mark.parametrize(
    "file",
    sorted(file for name in ("vaeserve", "service", "training") for file in (ROOT / name).rglob("*.py")),
    ids=lambda file: file.relative_to(ROOT).as_posix(),
)
def test_a_file_imports_only_what_its_package_may(file):
    allowed = ALLOWED[package(file)]
    for name in imported(file):
        parts = name.split(".")
        prefixes = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
        assert prefixes & (allowed | sys.stdlib_module_names), f"{file} must not import {name}"


def test_the_top_packages_do_nothing_when_imported():
    for name in ("service", "training", "vaeserve/bundle"):
        assert (ROOT / name / "__init__.py").read_text() == ""
