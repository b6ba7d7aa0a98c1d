"""The documents tell the truth: every command block in these pages is executed, against a live service.

A block that cannot run here carries `<!-- not run: the reason -->` above it; at most six may.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command

import training.__main__ as vae_train
import vaeserve.client.__main__ as vae_client
from tests import documents
from tests.checkout import ROOT

RUN = ("README.md", "docs/oip.md", "docs/bulk.md")  # the pages whose blocks are run
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL
)
BLOCKS = {
    page: [match.groupdict() for match in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))]
    for page in RUN
}


@pytest.fixture(scope="module")
def playgrounds(tmp_path_factory):
    """An empty folder for each page, in which a reader follows it from top to bottom."""
    return {page: tmp_path_factory.mktemp("reader") for page in RUN}


def test_at_most_six_blocks_are_not_run_and_each_says_why():
    reasons = [block["reason"] for blocks in BLOCKS.values() for block in blocks if block["reason"]]
    assert len(reasons) <= 6
    assert all(len(reason) > 10 for reason in reasons)
    assert len(BLOCKS["README.md"]) - len(reasons) >= 4


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
def test_what_is_made_from_the_code_is_up_to_date(page, name, text):
    assert text == documents.made(name), (
        f"{page}: `{name}` changed; `python -m tests.documents` writes it anew"
    )


def test_the_tables_are_there():
    """Nobody takes the markers out, and nothing that can be set or typed is left out."""
    assert set(documents.parts("README.md")) == {"endpoints"}
    commands = (
        "vae-client",
        *(f"vae-client {name}" for name in get_command(vae_client.app).commands),
        *(f"vae-train {name}" for name in get_command(vae_train.app).commands),
    )
    helps = {f"{command} --help" for command in ("vae-serve", "vae-serve check", *commands)}
    assert set(documents.parts("docs/settings.md")) == {"settings", *helps}


@pytest.mark.parametrize("page", ["README.md", "models/README.md", "docs/settings.md", *RUN[1:]])
def test_links_point_at_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_the_bundle_page_s_example_runs():
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "models/README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
