"""New versions take the place of old ones while requests go on: over real sockets."""

import io
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

from service.settings import Settings
from tests.bundles import make_bundle
from tests.conftest import in_a_thread
from tests.live import serving
from vaeserve.bundle.repository import open_engine

LATENTS = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def served(url):
    return httpx.get(f"{url}/models/tiny").json()


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


def decode(client):
    """The decoded latents, and which version did it."""
    answer = client.post(
        "/decode", json={"latents": LATENTS.tolist()}, headers={"Accept": "application/x-npz"}
    )
    assert answer.status_code == 200, answer.text
    return answer.headers["x-model"], answer.content


def test_versions_come_and_go_without_a_failed_request_and_a_bad_one_never_serves(tmp_path, caplog):
    caplog.set_level("INFO", "service.core.service")
    expected, answers, failures, stop = {}, [], [], threading.Event()

    def publish(seed):
        path = make_bundle(tmp_path, seed=seed)
        engine = open_engine(path)
        expected[engine.manifest.reference] = engine.decode(LATENTS)

    def ask(url):
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.is_set():
                try:
                    answers.append(decode(client))
                except Exception as error:
                    failures.append(error)

    publish(0)
    with in_a_thread(Settings(models=tmp_path, poll=0.05, access_log=False)) as url:
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for seed in range(1, 5):
                publish(seed)
                until(lambda newest=f"tiny@{seed + 1}": newest in {version for version, _ in answers})
            stage = make_bundle(tmp_path / "elsewhere", seed=9)  # says it is tiny@1
            shutil.copytree(stage, tmp_path / "tiny" / "6")
            bad = until(lambda: served(url)["refused"])
            assert bad == {str(tmp_path / "tiny/6"): bad[str(tmp_path / "tiny/6")]}
            assert "says it is tiny@1" in bad[str(tmp_path / "tiny/6")]
            time.sleep(0.3)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        metrics = httpx.get(f"{url}/metrics").text
    assert failures == []
    assert {version for version, _ in answers} == {f"tiny@{version}" for version in range(1, 6)}
    for version, content in set(answers):
        with np.load(io.BytesIO(content)) as arrays:
            np.testing.assert_array_equal(arrays["images"], expected[version])
    assert caplog.text.count("says it is tiny@1") == 1
    assert "unloaded tiny@4" in caplog.text
    assert 'vae_golden_check{model="tiny",version="6"} 0' in metrics


def test_as_many_versions_are_kept_as_were_asked_for(tmp_path):
    make_bundle(tmp_path)
    with in_a_thread(Settings(models=tmp_path, poll=0.05, versions="latest:2", access_log=False)) as url:
        make_bundle(tmp_path, seed=1)
        until(lambda: served(url)["versions"] == [1, 2])
        assert httpx.get(f"{url}/sample?model=tiny@1").headers["x-model"] == "tiny@1"
        make_bundle(tmp_path, seed=2)
        until(lambda: served(url)["versions"] == [2, 3])
        answer = httpx.get(f"{url}/sample?model=tiny@1")
        assert answer.status_code == 409
        assert "there is tiny@2, tiny@3" in answer.json()["detail"]


def test_a_new_version_is_there_when_reload_has_answered_and_only_for_who_has_a_key(tmp_path):
    make_bundle(tmp_path)
    settings = Settings(models=tmp_path, poll=0, access_log=False)
    with in_a_thread(settings) as url:
        assert httpx.post(f"{url}/models/tiny/reload").status_code == 404
    keyed = settings.model_copy(update={"api_keys": SecretStr("secret-key-1")})
    with in_a_thread(keyed) as url:
        make_bundle(tmp_path, seed=1)
        assert httpx.post(f"{url}/models/tiny/reload").status_code == 401
        headers = {"Authorization": "Bearer secret-key-1"}
        assert httpx.get(f"{url}/models/tiny", headers=headers).json()["model"] == "tiny@1"
        answer = httpx.post(f"{url}/models/tiny/reload", headers=headers)
        assert answer.status_code == 200
        assert answer.json()["model"] == "tiny@2"
        assert httpx.post(f"{url}/models/none/reload", headers=headers).status_code == 404


def test_nothing_is_lost_when_the_repository_is(tmp_path, caplog):
    make_bundle(tmp_path / "models")
    with in_a_thread(Settings(models=tmp_path / "models", poll=0.05, access_log=False)) as url:
        (tmp_path / "models").rename(tmp_path / "moved")
        until(lambda: "goes on serving" in caplog.text)
        time.sleep(0.3)
        assert caplog.text.count("goes on serving") == 1
        assert httpx.get(f"{url}/sample").status_code == 200
        make_bundle(tmp_path / "moved", seed=1)
        (tmp_path / "moved").rename(tmp_path / "models")
        until(lambda: served(url)["model"] == "tiny@2")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one worker may get every connection")
def test_every_worker_takes_a_new_version_up(tmp_path):
    make_bundle(tmp_path)
    with serving(tmp_path, "--workers", "2", "--poll", "0.1", "--no-access-log") as url:
        make_bundle(tmp_path, seed=1)

        def all_new():
            return all(httpx.get(f"{url}/sample").headers["x-model"] == "tiny@2" for _ in range(30))

        until(all_new)


MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
from service.core.metrics import Metrics, resident_bytes
from service.core.batcher import ModelThread
from service.core.service import Loader
from service.settings import Settings

made, folder = Path(sys.argv[1]), Path(sys.argv[2])
loader = Loader(Settings(models=folder), ModelThread(), Metrics())
resident = []
for version in range(1, 6):
    (made / "tiny" / str(version)).rename(folder / "tiny" / str(version))
    models = loader.load()
    (engine,) = loader._served
    assert engine.manifest.version == version
    engine.decode(engine.encode(np.zeros((64, 64, 64, 3), np.uint8)).mean)
    del engine, models
    resident.append(resident_bytes())
print(json.dumps(resident))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
def test_unloading_gives_the_memory_back(tmp_path):
    made, folder = tmp_path / "made", tmp_path / "models"
    (folder / "tiny").mkdir(parents=True)
    for seed in range(5):
        bundle = make_bundle(made, height=64, width=64, channels=3, latent=(128,), seed=seed)
    size = sum(file.stat().st_size for file in bundle.iterdir())
    command = [sys.executable, "-c", MEASURE, made, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    resident = json.loads(done.stdout)
    print(f"a bundle has {size / 1e6:.0f} MB; resident MB after each swap: {[r // 10**6 for r in resident]}")
    assert resident[-1] - resident[0] < size, resident
