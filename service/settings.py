"""The settings of the service: one class defines the flags, the environment variables and the help."""

import os
import ssl
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, SecretStr
from pydantic_settings import BaseSettings, CliSuppress, NoDecode, SettingsConfigDict

from vaeserve.bundle.cpus import usable_cpus

MIB = 1 << 20
# The default number of workers stops here: each takes 100 MB or more.
MAX_WORKERS = 8
# Seconds to finish requests in flight at shutdown. Most take milliseconds; the slowest uploads need this.
GRACE = 30
# OpenTelemetry's own variables. One of them must give the URL of a collector.
COLLECTORS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)


class WrongSettings(ValueError):
    """Settings that cannot work. The message is one sentence and says what to do."""


def _split(value: Any) -> Any:
    """Split `a, b` or `a b` into two values."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


class Settings(BaseSettings):
    """Read once at the start and frozen. Nothing else in the service reads the environment."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="VAESERVE_",
        env_ignore_empty=True,  # compose files pass unset variables as empty strings
        cli_kebab_case=True,
        cli_show_env_vars=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    host: str = Field(
        "127.0.0.1",
        description="address to listen on; the default is reachable from this machine only, 0.0.0.0 from "
        "all networks",
    )
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 picks a free one")
    models: Path = Field(Path("models"), description="folder of a model repository or of one bundle")
    default_model: str | None = Field(
        None,
        description="model for requests that name none; default: mnist if it is loaded, else the only "
        "model loaded",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=256,
        description="processes that serve, each with its own copy of the models; default: one per usable CPU "
        f"(by affinity and container quota), at most {MAX_WORKERS}",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="onnxruntime threads per process; default: usable CPUs divided by workers, minus one for "
        "handling requests, at least 1",
    )
    provider: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="execution provider; cuda needs onnxruntime-gpu instead of onnxruntime and never "
        "falls back to the CPU",
    )
    max_body: ByteSize = Field(
        ByteSize(32 * MIB),
        ge=1024,
        description="largest request body, for example 64MiB; bounds the memory of one request",
    )
    max_images: int = Field(256, ge=1, description="most images or latents in one request")
    max_samples: int = Field(
        256,
        ge=1,
        description="most images from one /sample request, which is small but costs as much as decoding "
        "that many latents",
    )
    max_pixels: int = Field(
        16 * MIB,
        ge=1,
        description="most pixels in an image file, read from its header, because a small file can unpack to "
        "gigabytes; half as many for WebP, four times as many for all files of a request",
    )
    max_batch: int = Field(
        64,
        ge=1,
        le=65536,
        description="most rows in one run of a graph; more rows add little speed, and later requests "
        "wait longer",
    )
    queue_rows: int = Field(
        1024,
        ge=1,
        description="most images or latents pending in a process; above that, or above what it can "
        "compute in "
        "half of --timeout at its measured speed, it answers 429 with Retry-After",
    )
    queue_bytes: ByteSize = Field(
        ByteSize(128 * MIB),
        ge=1024,
        description="most bytes of request bodies pending in a process; above that it answers 429",
    )
    timeout: float = Field(
        30,
        gt=0,
        le=86400,
        description="seconds to answer a request after it has arrived; then it is cancelled and answered "
        "with 504",
    )
    read_timeout: float = Field(
        5,
        gt=0,
        le=86400,
        description="seconds for a client to send its request, plus one for each 16 KiB; then it is "
        "answered with 408",
    )
    drain_seconds: float = Field(
        2.0,
        ge=0,
        le=600,
        description="seconds after SIGTERM in which requests are still accepted while /readyz answers "
        "503; set "
        "it longer than the load balancer needs to notice; Ctrl-C does not wait",
    )
    api_keys: CliSuppress[SecretStr | None] = Field(
        None,
        description="API keys, separated by commas; requests must then send one as `Authorization: "
        "Bearer <key>`; "
        "there is no flag, because other users of the machine could read it",
    )
    api_keys_file: Path | None = Field(
        None,
        description="file with one API key per line, such as a mounted secret; adds to VAESERVE_API_KEYS",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (),
        description="origins whose pages may call the service from a browser, separated by commas, for "
        "example "
        "https://example.org; * allows all",
    )
    tls_cert: Path | None = Field(None, description="file with the certificate chain (PEM); serves https")
    tls_key: Path | None = Field(
        None, description="file with the private key (PEM); default: read from --tls-cert"
    )
    stuck_after: float = Field(
        60,
        gt=0,
        description="seconds that one batch may take before /healthz and /readyz answer 503, so that a "
        "supervisor restarts the process; also the seconds that the event loop may hang before the process "
        "exits with status 4",
    )
    poll: float = Field(
        5,
        ge=0,
        le=86400,
        description="seconds between checks for new versions in --models; a new version is verified and then "
        "replaces the old one without downtime; 0 disables the checks",
    )
    versions: str = Field(
        "latest:1",
        pattern=r"^(all|latest:[1-9][0-9]{0,3})$",
        description="versions of each model to keep loaded: latest:N (the newest N valid ones) or all",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level that is logged"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="text for people, or json with one object per line for log collectors"
    )
    otel: bool = Field(
        False,
        description="send traces and request metrics to the collector at OTEL_EXPORTER_OTLP_ENDPOINT (and "
        "OpenTelemetry's other variables); needs `pip install 'vaeserve[otel]'`",
    )
    access_log: bool = Field(
        False,  # a line takes a tenth of the time of a small model's request; /metrics counts them all
        description="log one line per request: method, path, status, milliseconds and id, never contents",
    )

    def keys(self) -> tuple[str, ...]:
        """All API keys; with none the service is open. WrongSettings if a source of keys has none."""
        keys = _split(self.api_keys.get_secret_value()) if self.api_keys else []
        if self.api_keys and not keys:
            raise WrongSettings("VAESERVE_API_KEYS holds no key; unset it, or set at least one key")
        if self.api_keys_file:
            try:
                lines = [line.strip() for line in self.api_keys_file.read_text(encoding="utf-8").splitlines()]
            except (OSError, UnicodeError) as error:
                raise WrongSettings(
                    f"cannot read the API keys in {self.api_keys_file} ({error}); check the file and its "
                    "permissions"
                ) from None
            found = [line for line in lines if line and not line.startswith("#")]
            if not found:
                raise WrongSettings(f"{self.api_keys_file} holds no API key; write one key per line")
            keys += found
        return tuple(keys)

    def check(self) -> None:
        """Raise WrongSettings now for what would otherwise fail later in every worker."""
        self.keys()
        if self.otel and find_spec("opentelemetry.exporter") is None:
            raise WrongSettings("--otel needs OpenTelemetry's exporter; run pip install 'vaeserve[otel]'")
        if self.otel and not any(name in os.environ for name in COLLECTORS):
            raise WrongSettings(f"--otel needs {COLLECTORS[0]}, the URL of a collector")
        if self.tls_key and not self.tls_cert:
            raise WrongSettings("--tls-key needs --tls-cert; set both")
        if self.tls_cert:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                    self.tls_cert, self.tls_key, password=lambda: ""
                )
            except (OSError, ssl.SSLError) as error:
                files = f"{self.tls_cert}{f' and {self.tls_key}' if self.tls_key else ''}"
                raise WrongSettings(
                    f"cannot use {files} for TLS ({error}); check that the certificate and the key match"
                ) from None

    def processes(self) -> int:
        """The number of workers.

        Python runs on one CPU at a time, and handling a request takes as long as running a small model: a
        second process gains more than a second thread.
        """
        if self.workers:
            return self.workers
        alone = self.provider == "cuda" or sys.platform == "win32"  # one GPU; no socket to share
        return 1 if alone else min(usable_cpus(), MAX_WORKERS)

    def model_threads(self) -> int:
        """Intra-op threads of each process, leaving one CPU for the event loop and the codecs."""
        return self.threads or max(1, usable_cpus() // self.processes() - 1)

    def kept_versions(self) -> int | None:
        """The number of versions of a model to keep loaded; None means all."""
        return None if self.versions == "all" else int(self.versions.removeprefix("latest:"))
