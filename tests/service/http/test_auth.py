"""API keys, CORS and TLS, each through a real server."""

import logging
import shutil
import ssl
import subprocess

import httpx
import pytest

from service.settings import Settings, WrongSettings
from tests.conftest import in_a_thread
from tests.live import VAE_SERVE, free_port, run
from vaeserve.client import Client
from vaeserve.client.errors import BadRequest

KEYS = ("first-key-of-two", "schlüssel-zwei")


@pytest.fixture(scope="module")
def guarded(repository):
    settings = Settings(models=repository, default_model="tiny", api_keys=",".join(KEYS), access_log=True)
    with in_a_thread(settings) as url, httpx.Client(base_url=url) as http:
        yield http


def bearer(key, scheme="Bearer"):
    return {"Authorization": f"{scheme} {key}".encode()}


@pytest.mark.parametrize(
    "path",
    ["/sample", "/models", "/models/tiny", "/models/tiny/sample", "/metrics", "/v2/models", "/nothing"],
)
def test_computing_and_revealing_needs_a_key(path, guarded):
    answer = guarded.get(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="vaeserve"'
    for key in KEYS:
        assert guarded.get(path, headers=bearer(key)).status_code == (404 if path == "/nothing" else 200)
    assert guarded.get(path, headers=bearer(KEYS[0], "bearer")).status_code != 401


def test_a_missing_key_is_answered_as_a_problem(guarded):
    answer = guarded.post("/encode", content=b"never read", headers={"Content-Type": "image/png"})
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "/problems/unauthorized"
    assert problem["instance"] == answer.headers["x-request-id"]
    assert "Authorization: Bearer" in problem["detail"]


@pytest.mark.parametrize(
    "header",
    [
        {"Authorization": KEYS[0]},
        {"Authorization": "Bearer"},
        bearer(KEYS[0][:-1]),
        bearer(KEYS[0] + "x"),
        bearer(KEYS[0].upper()),
        bearer(",".join(KEYS)),
        bearer("\xff"),
        bearer(KEYS[0], "Basic"),
        {"X-Api-Key": KEYS[0]},
    ],
)
def test_a_wrong_key_is_refused(header, guarded):
    answer = guarded.get("/models", headers=header)
    assert answer.status_code == 401
    assert ("invalid_token" in answer.headers["www-authenticate"]) == ("Authorization" in header)


@pytest.mark.parametrize(
    "path",
    ["/", "/healthz", "/readyz", "/docs", "/openapi.json", "/problems/unauthorized", "/v2/health/ready"],
)
def test_probes_and_pages_need_no_key(path, guarded):
    answer = guarded.get(path)
    assert answer.status_code == 200
    assert not any(key in answer.text for key in KEYS)


def test_keys_are_never_logged_or_printed(guarded, caplog):
    caplog.set_level(logging.DEBUG)
    for key in (*KEYS, "wrong-key"):
        guarded.get("/models", headers=bearer(key))
    guarded.get("/sample", params={"api_key": KEYS[0]}, headers=bearer(KEYS[0]))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("service")]
    assert ours
    assert not any(key in line for key in (*KEYS, "wrong-key") for line in ours)
    settings = Settings(api_keys=KEYS[0])
    assert KEYS[0] not in f"{settings!r} {settings} {settings.model_dump()}"


def test_the_client_sends_its_key(guarded):
    url = str(guarded.base_url)
    with Client(url, api_key=KEYS[0]) as client:
        assert client.sample(2, seed=1).images.shape == (2, 8, 8, 1)
    with Client(url) as client, pytest.raises(BadRequest, match="requires an API key"):
        client.sample(1)


def test_keys_may_come_from_a_file(repository, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# for the batch jobs\nfrom-file \n\nanother\n")
    settings = Settings(models=repository, api_keys_file=file, api_keys="from-environment")
    assert settings.keys() == ("from-environment", "from-file", "another")
    with in_a_thread(settings) as url:
        for key in settings.keys():  # noqa: SIM118  a method of ours
            assert httpx.get(f"{url}/models", headers=bearer(key)).status_code == 200
        assert httpx.get(f"{url}/models", headers=bearer("# for the batch jobs")).status_code == 401


@pytest.mark.parametrize("content", [None, "", "# only a comment\n\n"])
def test_the_service_refuses_to_start_without_the_keys_it_was_promised(content, tmp_path, free_port):
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    ended = run("--api-keys-file", file, "--port", free_port)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("vae-serve: ")
    assert str(file) in line
    with pytest.raises(WrongSettings, match="VAESERVE_API_KEYS holds no key"):
        Settings(api_keys=" , ").keys()


def test_pages_of_listed_origins_may_call_the_service(repository):
    settings = Settings(
        models=repository,
        default_model="tiny",
        cors_origins="https://a.example, https://b.example",
        api_keys="k",
    )
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    with in_a_thread(settings) as url, httpx.Client(base_url=url) as http:
        before = http.options("/encode", headers={"Origin": "https://b.example"} | asked)
        assert before.status_code == 200  # browsers send no key with a preflight
        assert before.headers["access-control-allow-origin"] == "https://b.example"
        assert http.options("/encode", headers={"Origin": "https://c.example"} | asked).status_code == 400
        answer = http.get("/sample", headers={"Origin": "https://a.example", **bearer("k")})
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert "X-Seed" in answer.headers["access-control-expose-headers"]
        refused = http.get("/sample", headers={"Origin": "https://a.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
        other = http.get("/sample", headers={"Origin": "https://c.example", **bearer("k")})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_tls(workers, repository, tmp_path):
    cert, key, port = tmp_path / "cert.pem", tmp_path / "key.pem", free_port()
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*make.split(), "-addext", names, "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    flags = ["--models", repository, "--tls-cert", cert, "--tls-key", key, "--port", str(port)]
    trusted = ssl.create_default_context(cafile=cert)
    with subprocess.Popen(
        [VAE_SERVE, *flags, "--drain-seconds", "0", "--workers", workers], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == f"vaeserve 0.1.0 at https://127.0.0.1:{port}, " + (
                f"documentation at https://127.0.0.1:{port}/docs\n"
            )
            answer = httpx.get(f"https://127.0.0.1:{port}/sample?model=tiny", verify=trusted)
            assert answer.status_code == 200
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
    key.write_text("not a key")
    ended = run(*flags)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert f"cannot use {cert} and {key} for TLS" in line
