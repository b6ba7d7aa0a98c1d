"""The generated parts of the pages: `python -m tests.documents` writes them again.

A generated part lies between `<!-- made: NAME … -->` and `<!-- end: NAME -->`; tests/test_docs.py checks it.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import ByteSize
from pydantic_settings import CLI_SUPPRESS

from service.settings import Settings
from tests.checkout import ROOT

PAGES = ("docs/api.md", "docs/models.md", "docs/settings.md")
PART = re.compile(
    r"(?P<begin><!-- made: (?P<name>[^\n;]+?)(?:; .+?)? -->\n)(?P<text>.*?)(?P<end><!-- end: )", re.S
)
# Short names of the media types that are not images, in the order of the columns.
MEDIA_TYPES = {
    "application/json": "JSON",
    "application/x-npy": "npy",
    "application/x-npz": "npz",
    "multipart/form-data": "multipart",
}
# The rows of the table of models: what it says, the metric, and how many digits it has.
METRICS = (
    ("log p(x) ≥, nats, under N(0, I)", "iwae", ".1f"),
    ("log p(x) ≥, nats, under the served prior", "iwae_prior", ".1f"),
    ("ELBO, nats", "elbo", ".1f"),
    ("rate, nats", "rate", ".1f"),
    ("active latent dimensions", "active_units", ".0f"),
    ("mean squared error", "mse", ".4f"),
    ("… of PCA", "mse_pca", ".4f"),
    ("5-NN accuracy", "knn5", ".3f"),
    ("… of PCA", "knn5_pca", ".3f"),
    ("… of raw pixels", "knn5_pixels", ".3f"),
    ("linear probe accuracy", "linear_probe", ".3f"),
    ("… of PCA", "linear_probe_pca", ".3f"),
    ("… of an untrained encoder", "linear_probe_random", ".3f"),
    ("Fréchet distance of samples", "frechet", ".2f"),
    ("… of samples from N(0, I)", "frechet_normal", ".2f"),
    ("… of real images", "frechet_real", ".2f"),
)


def operations() -> str:
    """docs/openapi.json as a table with one row per operation, whatever the ways to name its model."""
    paths = json.loads((ROOT / "docs/openapi.json").read_text(encoding="utf-8"))["paths"]
    rows: dict[str, list[str]] = {}
    for path, item in paths.items():
        of_a_model = path.startswith("/models/{name}") and path.removeprefix("/models/{name}") in paths
        if "/versions/" in path or of_a_model:
            continue
        methods = ", ".join(method.upper() for method in item)
        bodies = [each["requestBody"]["content"] for each in item.values() if "requestBody" in each]
        operation = next(iter(item.values()))
        answers = operation["responses"]["200"]["content"]
        bodies_named = _media_types(dict.fromkeys(name for body in bodies for name in body))
        rows[path] = [f"`{methods} {path}`", bodies_named, _media_types(answers), operation["summary"]]
    return _table(("operation", "body", "answer", "what it does"), rows.values())


def models() -> str:
    """The metrics of the newest version of each shipped model, from its manifest."""
    folders = [max(each.iterdir(), key=lambda path: int(path.name)) for each in _folders(ROOT / "models")]
    manifests = [json.loads((each / "manifest.json").read_text(encoding="utf-8")) for each in folders]
    head = ["", *(_link(manifest) for manifest in manifests)]
    rows = [
        ["image", *("{height}×{width}×{channels}".format(**each["image"]) for each in manifests)],
        ["latents", *("×".join(map(str, each["latent"]["shape"])) for each in manifests)],
        ["likelihood", *(each["likelihood"]["kind"] for each in manifests)],
        *(
            [title, *(_metric(manifest, name, digits) for manifest in manifests)]
            for title, name, digits in METRICS
        ),
    ]
    return _table(head, rows)


def settings() -> str:
    """service/settings.py as a table."""
    rows = []
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        flags = f"`{flag}`, `--no-{flag[2:]}`" if field.annotation is bool else f"`{flag}`"
        if CLI_SUPPRESS in field.metadata:
            flags = ""
        variable = f"`VAESERVE_{name.upper()}`"
        rows.append([flags, variable, _default(field.default), field.description or ""])
    return _table(("flag", "variable", "default", "meaning"), rows)


def help_of(*command: str) -> str:
    """The output of the command with --help, 100 columns wide."""
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
    """Generate the part of this name."""
    tables: dict[str, Callable[[], str]] = {"operations": operations, "models": models, "settings": settings}
    return tables[name]() if name in tables else help_of(*name.removesuffix(" --help").split())


def parts(page: str) -> dict[str, str]:
    """The generated parts as they stand in a page, by name."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return {match["name"]: match["text"] for match in PART.finditer(text)}


def write(page: str) -> None:
    """Generate all parts of a page again."""
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    path.write_text(PART.sub(lambda part: part["begin"] + made(part["name"]) + part["end"], text), "utf-8")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head, *lines = (f"| {' | '.join(cells)} |\n" for cells in [list(head), *rows])
    return "".join([head, "|" + "---|" * (head.count("|") - 1) + "\n", *lines])


def _media_types(media_types: Iterable[str]) -> str:
    found = list(media_types)
    images = [name.partition("/")[2].upper() for name in found if name.startswith("image/")]
    return ", ".join([*(short for name, short in MEDIA_TYPES.items() if name in found), *images])


def _folders(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir())


def _link(manifest: dict[str, Any]) -> str:
    name, version = manifest["name"], manifest["version"]
    return f"[`{name}@{version}`](../models/{name}/{version}/README.md)"


def _metric(manifest: dict[str, Any], name: str, digits: str) -> str:
    metric = manifest["metrics"].get(name)
    return f"{metric['value']:{digits}}".replace("-", "−") if metric else ""


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
