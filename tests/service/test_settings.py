"""Settings come from flags, the environment and defaults, and explain themselves."""

import pickle

import pytest
from pydantic import ValidationError

from service.__main__ import settings_from
from service.settings import Settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"VAESERVE_{name.upper()}", raising=False)


def test_every_setting_has_a_description_and_a_default():
    Settings()
    for name, field in Settings.model_fields.items():
        assert len(field.description or "") > 10, name


def test_flags_override_the_environment_which_overrides_the_defaults(monkeypatch):
    monkeypatch.setenv("VAESERVE_PORT", "9001")
    monkeypatch.setenv("VAESERVE_MAX_BODY", "64MiB")
    monkeypatch.setenv("VAESERVE_DEFAULT_MODEL", "")  # as compose passes an unset variable
    settings = settings_from(["--port", "9002", "--no-access-log"])
    assert settings.port == 9002
    assert settings.max_body == 64 << 20
    assert settings.default_model is None
    assert settings.host == "127.0.0.1"
    assert not settings.access_log


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


def test_settings_survive_pickling_for_workers(tmp_path):
    settings = Settings(models=tmp_path, max_body=5 << 20, workers=3, access_log=False)
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--port", "abc"], "--port or VAESERVE_PORT: Input should be a valid integer"),
        (
            ["--max-batch", "0"],
            "--max-batch or VAESERVE_MAX_BATCH: Input should be greater than or equal to 1",
        ),
        (["--workers", "-1"], "--workers or VAESERVE_WORKERS"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_an_invalid_setting_is_named_by_flag_and_variable(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as stopped:
        settings_from(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert "Traceback" not in said


def test_help_lists_every_flag_with_its_variable(capsys):
    with pytest.raises(SystemExit):
        settings_from(["--help"])
    said = capsys.readouterr().out
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in said
        assert f"VAESERVE_{name.upper()}" in said
    assert "vae-serve check" in said


def test_one_cpu_is_reserved_for_requests(monkeypatch):
    monkeypatch.setattr("service.settings.usable_cpus", lambda: 8)
    assert Settings(workers=1).model_threads() == 7
    assert Settings(workers=4).model_threads() == 1
    assert Settings(workers=32).model_threads() == 1
    assert Settings(threads=3).model_threads() == 3


@pytest.mark.parametrize(("cpus", "workers", "threads"), [(1, 1, 1), (2, 2, 1), (8, 8, 1), (64, 8, 7)])
def test_workers_default_to_the_cpus_up_to_eight(monkeypatch, cpus, workers, threads):
    monkeypatch.setattr("service.settings.usable_cpus", lambda: cpus)
    assert (Settings().processes(), Settings().model_threads()) == (workers, threads)
    assert Settings(workers=3).processes() == 3
