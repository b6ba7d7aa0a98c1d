"""The pages are true: their commands run against a live service, tables are current, linked files exist.

A block that cannot run here carries `<!-- not run: the reason -->` above it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command

import training.cli as vae_train
import vaeserve.client.cli as vae_client
from tests import documents
from tests.checkout import ROOT

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"))
)
RUN = ("README.md", "docs/api.md", "docs/bulk.md", "docs/models.md", "docs/oip.md")
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)```", re.DOTALL
)


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


BLOCKS = {page: [match.groupdict() for match in BLOCK.finditer(read(page))] for page in RUN}


@pytest.fixture(scope="module")
def playgrounds(tmp_path_factory):
    """An empty folder for each page, in which a reader follows it from top to bottom."""
    return {page: tmp_path_factory.mktemp("reader") for page in RUN}


def test_every_block_that_is_not_run_has_a_reason():
    reasons = [block["reason"] for blocks in BLOCKS.values() for block in blocks if block["reason"]]
    assert len(reasons) <= 6
    assert all(len(reason) > 10 for reason in reasons)


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, i) for page, blocks in BLOCKS.items() for i, block in enumerate(blocks) if not block["reason"]],
)
def test_block_runs(page, number, playgrounds, shipped_service):
    block, playground = BLOCKS[page][number], playgrounds[page]
    code = block["code"].replace("http://localhost:8000", shipped_service)
    code = code.replace("localhost:8000", shipped_service.removeprefix("http://"))
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "VAESERVE_URL": shipped_service,
    }
    command = {
        "bash": ["bash", "-euo", "pipefail", "-c", code.replace("curl ", "curl -fsS ")],
        "python": [sys.executable, "-c", code],
    }[block["language"]]
    result = subprocess.run(
        command, cwd=playground, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"{code}\n{result.stdout}\n{result.stderr}"
    for name in re.findall(r"-o (\S+\.png)", code):
        with Image.open(playground / name) as image:
            assert image.width >= 28


@pytest.mark.parametrize(
    ("page", "name", "text"),
    [(page, name, text) for page in documents.PAGES for name, text in documents.parts(page).items()],
)
def test_generated_part_is_current(page, name, text):
    assert text == documents.made(name), (
        f"{page}: `{name}` changed; `python -m tests.documents` generates it again"
    )


def test_every_setting_and_command_is_documented():
    assert set(documents.parts("docs/api.md")) == {"operations"}
    assert set(documents.parts("docs/models.md")) == {"models"}
    commands = (
        "vae-client",
        *(f"vae-client {name}" for name in get_command(vae_client.app).commands),
        *(
            f"vae-train {name}"
            for name, each in get_command(vae_train.app).commands.items()
            if not each.hidden
        ),
    )
    helps = {f"{command} --help" for command in ("vae-serve", "vae-serve check", *commands)}
    assert set(documents.parts("docs/settings.md")) == {"settings", *helps}


@pytest.mark.parametrize("page", PAGES)
def test_links_point_at_files(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", read(page)):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_files_named_in_contributing_exist():
    names = re.findall(r"`([\w./-]+/[\w./-]*)`", read("CONTRIBUTING.md"))
    assert len(names) >= 15
    for name in names:
        assert (ROOT / name).exists(), f"CONTRIBUTING.md names {name}"


def test_readme_and_contributing_are_short():
    assert len(read("README.md").splitlines()) <= 120
    assert len(read("CONTRIBUTING.md").splitlines()) <= 60


def test_python_block_of_the_bundle_format_runs():
    (code,) = re.findall(r"```python\n(.*?)```", read("models/README.md"), re.DOTALL)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
