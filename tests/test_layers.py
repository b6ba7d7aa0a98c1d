"""Who may import whom: the import table of the house, and that it has no circle.

The table keeps the service small, the trainer and the client apart from it, and the operations free of HTTP.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.checkout import ROOT

# What a room may import besides the standard library: libraries, and other rooms.
BUNDLE = {"numpy", "PIL", "pydantic", "onnxruntime"}
CORE = BUNDLE | {"orjson", "prometheus_client", "vaeserve.bundle", "service.settings"}
HTTP = CORE | {"fastapi", "starlette", "python_multipart", "service.core", "service.operations"}
TRAINING = BUNDLE | {"torch", "scipy", "sklearn", "vaeserve.bundle", "training.config"}
ALLOWED = {
    "vaeserve": {"vaeserve.bundle", "vaeserve.client"},
    "vaeserve.bundle": BUNDLE,
    "vaeserve.client": {"httpx", "numpy", "typer", "rich", "click", "pyarrow"},
    "service.settings": {"pydantic", "pydantic_settings", "vaeserve.bundle"},
    "service.core": CORE,
    "service.operations": CORE | {"service.core"},
    "service.http": HTTP,
    "service.oip": HTTP | {"service.http"},
    "service.app": HTTP | {"fastapi_offline", "service.http", "service.oip"},
    "service.server": HTTP | {"uvicorn", "service.http", "service.app"},
    "service.__main__": HTTP | {"pydantic_settings", "service.app", "service.server"},
    "training.config": {"pydantic", "vaeserve.bundle"},
    "training.data": TRAINING,
    "training.model": TRAINING,
    # onnx to start from the weights of a bundle
    "training.fit": TRAINING | {"rich", "onnx", "training.data", "training.model"},
    "training.evaluation": TRAINING | {"training.data", "training.model", "training.fit"},
    "training.publishing": TRAINING
    | {"matplotlib", "onnx", "training.data", "training.model", "training.fit", "training.evaluation"},
    "training.flags": {"typer", "training.config"},
    "training.cli": TRAINING
    | {"typer", "training.data", "training.fit", "training.evaluation", "training.publishing"}
    | {"training.flags"},
    "training.__main__": {"training.cli"},
}
# `python -m` on these prints what a committed file holds, for which they make an application.
BY_COMMAND = {("service.http.openapi", "service.app")}
FILES = sorted(file for name in ("vaeserve", "service", "training") for file in (ROOT / name).rglob("*.py"))


def module(file: Path) -> str:
    """The dotted name of a file's module."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(file): file for file in FILES}


def room(name: str) -> str:
    """The row of the table that a module belongs to, or its library."""
    fitting = [each for each in ALLOWED if name == each or name.startswith(f"{each}.")]
    return max(fitting, key=len) if fitting else name.partition(".")[0]


def imported(file: Path) -> Iterator[str]:
    """Every module that the file imports, at its top or inside a function; types too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write the import in full"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module or ""


@pytest.mark.parametrize("name", MODULES)
def test_a_file_imports_only_what_its_room_may(name):
    here = room(name)
    if name in ("service", "training"):
        return
    for other in imported(MODULES[name]):
        there = room(other)
        allowed = there in ALLOWED[here] | sys.stdlib_module_names | {here}
        assert allowed or (name, other) in BY_COMMAND, f"{name} must not import {other}"


def test_no_room_and_no_file_imports_itself_around_a_corner():
    files = {
        name: {each for each in imported(file) if each in MODULES and (name, each) not in BY_COMMAND} - {name}
        for name, file in MODULES.items()
        if file.name != "__init__.py"
    }
    rooms: dict[str, set[str]] = {}
    for name, others in files.items():
        rooms.setdefault(room(name), set()).update({room(other) for other in others} - {room(name)})
    for graph in (files, rooms):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            pytest.fail(f"an import circle: {' → '.join(error.args[1])}")


def test_an_application_does_nothing_when_it_is_imported():
    for name, file in MODULES.items():
        if file.name == "__init__.py" and name not in ("vaeserve", "vaeserve.client"):
            assert file.read_text(encoding="utf-8") == "", name
