"""The files of the explorer: served as they are, cached, closed to everything else."""

import os
import re
import subprocess
import sys
import zipfile

import pytest

from tests.checkout import ROOT

FOLDER = ROOT / "service/explorer"
FILES = {"/" if file.name == "index.html" else f"/explorer/{file.name}": file for file in FOLDER.iterdir()}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_served_as_it_is_and_not_twice(http, path):
    answer = http.get(path)
    assert (answer.status_code, answer.content) == (200, FILES[path].read_bytes())
    assert answer.headers["Content-Type"].partition(";")[0] == TYPES[FILES[path].suffix]
    assert answer.headers["Cache-Control"] == "no-cache"
    etag = answer.headers["ETag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}'):
        again = http.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
    assert http.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(answer.content))


def test_the_policy_lets_nothing_in_from_elsewhere(http):
    policy = dict(part.split(" ", 1) for part in http.get("/").headers["Content-Security-Policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    allowed = {source for sources in policy.values() for source in sources.split()}
    assert allowed <= {"'none'", "'self'", "blob:", "data:", "'script'"}
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "inline" not in str(policy)


def test_the_sources_name_no_other_host_and_only_files_that_are_there(http):
    for file in FOLDER.iterdir():
        text = file.read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {"http://www.w3.org/2000/svg"}, file
        for name in re.findall(r"from \"\./([^\"]+)\"|(?:src|href)=\"explorer/([^\"]+)\"", text):
            assert (FOLDER / "".join(name)).is_file(), (file, name)


@pytest.mark.parametrize(
    "path",
    [
        "/explorer",
        "/explorer/",
        "/explorer/index.html",
        "/explorer/missing.js",
        "/explorer/%2e%2e/pages.py",
        "/index.html",
    ],
)
def test_what_is_not_there_is_a_problem_and_not_the_page(http, path):
    answer = http.get(path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_it_is_in_the_wheel_and_served_from_there(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = """
from starlette.testclient import TestClient
from service import app
from service.settings import Settings
client = TestClient(app.create_app(Settings()))
print(app.__file__, client.get("/").status_code, client.get("/explorer/app.js").status_code)
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == [str(tmp_path / "installed/service/app.py"), "200", "200"], done.stderr
