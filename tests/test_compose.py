"""The Dockerfile, the compose file, the locks and the dashboard agree with each other and with the code."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from ruamel.yaml import YAML

from tests.checkout import ROOT

DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = ("build.lock", "service.lock", "service-gpu.lock")
PIN = re.compile(r"^([a-z0-9._-]+)(?:\[.+\])?==([^ ]+)(?: ; (.+?))? \\$", re.MULTILINE)
# The series of a histogram have these suffixes.
SUFFIXES = ("_bucket", "_sum", "_count")


def read_yaml(path: Path) -> dict[str, object]:
    return YAML(typ="safe").load(path)


@pytest.fixture(scope="module")
def compose():
    return read_yaml(ROOT / "docker-compose.yml")


def test_compose_file_follows_the_schema():
    check = Path(sys.executable).with_name("check-jsonschema")
    command = [check, "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_compose_builds_targets_and_mounts_files_that_exist(compose):
    targets = re.findall(
        r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert targets[-1] == "service", "the last target is the one that `docker build .` builds"
    for service in compose["services"].values():
        if "build" in service:
            assert service["build"]["target"] in targets
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"], (
                source
            )


def test_compose_starts_only_the_service_by_default(compose):
    profiles = {name: service.get("profiles") for name, service in compose["services"].items()}
    assert profiles == {
        "service": None,
        "service-gpu": ["gpu"],
        "train": ["train"],
        "prometheus": ["observe"],
        "grafana": ["observe"],
    }


def test_compose_opens_ports_to_this_machine_only(compose):
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len(set(ports)) == len(ports)


@pytest.mark.parametrize("name", LOCKS)
def test_lock_pins_with_hashes_and_names_no_index(name):
    text = (DEPLOY / name).read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert blocks[0].startswith("#")
    for block in blocks[1:]:
        assert PIN.match(block), block
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block
    assert not re.search(r"://|--index|--find-links|--extra|@ ", text)


def test_service_lock_has_the_dependencies_of_pyproject_and_no_trainer():
    pins = [match.groups() for match in PIN.finditer((DEPLOY / "service.lock").read_text(encoding="utf-8"))]
    for line in PROJECT["project"]["dependencies"]:
        wanted = Requirement(line)
        versions = [version for name, version, _ in pins if name == canonicalize_name(wanted.name)]
        assert versions, f"{wanted.name} is not in service.lock: run `make lock`"
        assert all(Version(each) in wanted.specifier for each in versions), f"{line}: run `make lock`"
    assert not {"torch", "onnx", "scipy", "httpx", "pip", "setuptools"} & {name for name, _, _ in pins}


def test_prometheus_and_grafana_match_their_mounts(compose):
    prometheus = read_yaml(DEPLOY / "prometheus.yml")
    (job,) = prometheus["scrape_configs"]
    (where,) = job["dns_sd_configs"]
    assert where["names"] == ["service"]
    assert compose["services"]["service"]["environment"]["VAESERVE_PORT"] == where["port"]
    (source,) = read_yaml(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = read_yaml(DEPLOY / "grafana/provisioning/dashboards/vaeserve.yml")["providers"]
    mounted = dict(each.split(":")[:2] for each in compose["services"]["grafana"]["volumes"])
    assert mounted["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DEPLOY / "grafana/dashboards" / home.removeprefix(f"{provider['options']['path']}/")).is_file()
    dashboard = json.loads((DEPLOY / "grafana/dashboards/vaeserve.json").read_text(encoding="utf-8"))
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}


def test_dashboard_and_page_name_the_same_metrics():
    page = (DEPLOY / "README.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `((?:vae|process)_\w+)` \|", page, re.MULTILINE))
    dashboard = json.loads((DEPLOY / "grafana/dashboards/vaeserve.json").read_text(encoding="utf-8"))
    used = set()
    for panel in dashboard["panels"]:
        assert panel["description"]
        for target in panel["targets"]:
            for name in re.findall(r"\b(?:vae|process)_\w+", target["expr"]):
                suffix = next((each for each in SUFFIXES if name.endswith(each)), "")
                used.add(name.removesuffix(suffix))
    assert used == documented
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
