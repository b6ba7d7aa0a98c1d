"""The parts of the documents that are made from the code: `python -m tests.documents` writes them anew.

A made part lies between `<!-- made: NAME … -->` and `<!-- end: NAME -->`; tests/test_docs.py compares.
"""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ByteSize
from pydantic_settings import CLI_SUPPRESS

from service.http.routes import COMPUTING, INFORMING
from service.settings import Settings
from tests.checkout import ROOT

PAGES = ("README.md", "docs/settings.md")
PART = re.compile(
    r"(?P<begin><!-- made: (?P<name>[^\n;]+?)(?:; .+?)? -->\n)(?P<text>.*?)(?P<end><!-- end: )", re.S
)
SHORT = {
    "application/json": "JSON",
    "application/x-npy": "npy",
    "application/x-npz": "npz",
    "multipart/form-data": "multipart",
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WebP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
}


def endpoints() -> str:
    """What is in service/http/routes.py, as a table."""
    rows = [
        f"| `{each.method} {each.path}` | {_types(each.readers)} | {_types(each.writers)} "
        f"| {inspect.cleandoc(each.endpoint.__doc__ or '').splitlines()[0]} |"
        for each in (*COMPUTING, *INFORMING)
    ]
    return _table(("route", "body", "answer", "does"), rows)


def settings() -> str:
    """What is in service/settings.py, as a table."""
    rows = []
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        flags = f"`{flag}`, `--no-{flag[2:]}`" if field.annotation is bool else f"`{flag}`"
        if CLI_SUPPRESS in field.metadata:
            flags = ""
        variable = f"`VAESERVE_{name.upper()}`"
        rows.append(f"| {flags} | {variable} | {_default(field.default)} | {field.description} |")
    return _table(("flag", "variable", "default", "meaning"), rows)


def help_of(*command: str) -> str:
    """What the command says with --help, 100 columns wide."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VAESERVE_")}
    environment |= {"COLUMNS": "100", "NO_COLOR": "1", "PYTHON_COLORS": "0", "TERM": "dumb"}
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run(
        [program, *command[1:], "--help"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    text = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
    return f"```text\n{text}\n```\n"


def made(name: str) -> str:
    """The text of the part of this name."""
    simple: dict[str, Callable[[], str]] = {"endpoints": endpoints, "settings": settings}
    return simple[name]() if name in simple else help_of(*name.removesuffix(" --help").split())


def parts(page: str) -> dict[str, str]:
    """The made parts that a page has, by name."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return {match["name"]: match["text"] for match in PART.finditer(text)}


def write(page: str) -> None:
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    path.write_text(PART.sub(lambda part: part["begin"] + made(part["name"]) + part["end"], text), "utf-8")


def _table(head: tuple[str, ...], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]) + "\n"


def _types(media_types: Any) -> str:
    return ", ".join(SHORT[media_type] for media_type in media_types)


def _default(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "on" if value else "off"
        case ByteSize():
            return value.human_readable().replace(".0", "")
        case int():
            return f"{value:,}" if value >= 10_000 else str(value)
        case _:
            return f"`{value}`"


if __name__ == "__main__":
    for each in PAGES:
        write(each)
