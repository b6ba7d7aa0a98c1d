"""Who may import whom: the rules that keep the service small, and trainer and client apart from it."""

import ast
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT

STANDARD = sys.stdlib_module_names
RUNTIME = {"numpy", "PIL", "pydantic", "onnxruntime", "service.runtime"}
ALLOWED = {
    "vaeserve/bundle": RUNTIME,
    "service": RUNTIME
    | {"service", "fastapi", "starlette", "uvicorn", "orjson", "pydantic_settings", "fastapi_offline"}
    | {"prometheus_client", "python_multipart"},
    "training": RUNTIME
    | {"training", "torch", "onnx", "scipy", "sklearn", "matplotlib", "typer", "rich", "click"},
    "client": {"client", "httpx", "numpy", "typer", "rich", "click", "pyarrow"},
}


def imported(file: Path) -> set[str]:
    """Every module that the file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write the import in full"
            module = node.module or ""
            names |= {module} if module != "service" else {f"service.{alias.name}" for alias in node.names}
    return names


def package(file: Path) -> str:
    path = file.relative_to(ROOT).as_posix()
    return max((name for name in ALLOWED if path.startswith(f"{name}/")), key=len)


@pytest.mark.parametrize(
    "file",
    sorted(f for name in ("service", "training", "client") for f in (ROOT / name).rglob("*.py")),
    ids=str,
)
def test_a_file_imports_only_what_its_package_may(file):
    allowed = ALLOWED[package(file)]
    for name in imported(file):
        parts = name.split(".")
        prefixes = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
        assert prefixes & (allowed | STANDARD), f"{file} must not import {name}"


def test_the_top_packages_do_nothing_when_imported():
    for name in ("service/__init__.py", "training/__init__.py", "service/runtime/__init__.py"):
        assert (ROOT / name).read_text() == ""
