"""Everything that can be set about the service: one class is the environment, the flags and the help."""

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
# Of workers that nobody asked for: each holds 100 MB and more.
MOST_WORKERS = 8
# What is in flight when the service is stopped takes milliseconds; this is for the slowest uploads.
GRACE = 30


# OpenTelemetry's own variables, of which one has to say where to.
COLLECTORS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)


class WrongSettings(ValueError):
    """Settings that cannot be followed; the message is one sentence that says what to do."""


def _split(value: Any) -> Any:
    """`a, b` and `a b` are lists of two."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


class Settings(BaseSettings):
    """Read once at start and never changed. Nothing else in the service reads the environment."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="VAESERVE_",
        env_ignore_empty=True,  # compose files hand over unset variables as empty ones
        cli_kebab_case=True,
        cli_show_env_vars=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    host: str = Field(
        "127.0.0.1",
        description="address to listen on: this machine alone by default, 0.0.0.0 for all of its networks",
    )
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one")
    models: Path = Field(Path("models"), description="folder of the model repository, or of one bundle")
    default_model: str | None = Field(
        None,
        description="model for requests that name none; unset: mnist if loaded, else the only one loaded",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=256,
        description="processes that serve, each with its own copy of the models; unset: one for each CPU "
        f"that may really be used (by affinity and container quota), at most {MOST_WORKERS}",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="onnxruntime threads of a process; unset: the CPUs that may really be used over the "
        "workers, less one for requests",
    )
    provider: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="what computes; cuda needs onnxruntime-gpu in place of onnxruntime, and never falls back",
    )
    max_body: ByteSize = Field(
        ByteSize(32 * MIB),
        ge=1024,
        description="bytes of a request body, as in 64MiB; bounds the memory that one request can take",
    )
    max_images: int = Field(
        256, ge=1, description="images or latents in one request; more is a matter of several requests"
    )
    max_samples: int = Field(
        256,
        ge=1,
        description="images of one /sample; it costs the model as many images, for a request of no size",
    )
    max_pixels: int = Field(
        16 * MIB,
        ge=1,
        description="pixels of an image file, known from its header before decoding: a small file can "
        "unpack to gigabytes. WebP may have half as many, all files of one request four times as many",
    )
    max_batch: int = Field(
        64,
        ge=1,
        le=65536,
        description="rows in one run of the model; more gain little speed and make the next ones wait",
    )
    queue_rows: int = Field(
        1024,
        ge=1,
        description="images or latents that may be pending in a process; above that, or above what it does "
        "in half of --timeout at its measured speed, it answers 429 with Retry-After",
    )
    queue_bytes: ByteSize = Field(
        ByteSize(128 * MIB),
        ge=1024,
        description="bytes of request bodies that may be pending in a process; above that it answers 429",
    )
    timeout: float = Field(
        30,
        gt=0,
        le=86400,
        description="seconds for the answer to a request that has arrived; then it is cancelled with 504",
    )
    read_timeout: float = Field(
        5,
        gt=0,
        le=86400,
        description="seconds for a client to send its request, and one more for each 16 KiB of it; then 408",
    )
    drain_seconds: float = Field(
        2.0,
        ge=0,
        le=600,
        description="after SIGTERM, how long requests are still accepted while /readyz says 503: longer than "
        "the load balancer takes to notice. Ctrl-C does not wait",
    )
    api_keys: CliSuppress[SecretStr | None] = Field(
        None,
        description="API keys, with commas: requests must then bring one, as `Authorization: Bearer <key>`. "
        "No flag: other users of the machine would see it",
    )
    api_keys_file: Path | None = Field(
        None, description="file of API keys, one a line, as secrets are mounted; besides VAESERVE_API_KEYS"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (),
        description="origins whose pages may call the service from a browser, as in https://example.org, "
        "with commas; * for all",
    )
    tls_cert: Path | None = Field(None, description="file of the certificate chain (PEM): serve https")
    tls_key: Path | None = Field(None, description="file of its private key (PEM); unset: in --tls-cert too")
    stuck_after: float = Field(
        60,
        gt=0,
        description="seconds that one batch may take before /healthz and /readyz answer 503, so that "
        "whatever watches over this process starts it anew; or that the event loop may hang before the "
        "process ends with status 4",
    )
    poll: float = Field(
        5,
        ge=0,
        le=86400,
        description="seconds between two looks for new versions in --models, which are checked, and then "
        "take the place of the old ones without a pause; 0: none",
    )
    versions: str = Field(
        "latest:1",
        pattern=r"^(all|latest:[1-9][0-9]{0,3})$",
        description="which versions of a model are kept loaded: latest:N (the newest N that are good) or all",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="how much is logged")
    log_format: Literal["text", "json"] = Field(
        "text", description="lines for people, or an object a line for whatever collects logs"
    )
    otel: bool = Field(
        False,
        description="send traces and request metrics to a collector, as OTEL_EXPORTER_OTLP_ENDPOINT and "
        "OpenTelemetry's other variables say; needs `pip install 'vaeserve[otel]'`",
    )
    access_log: bool = Field(
        False,  # a line takes a tenth of the time that a small model's request does; /metrics counts all
        description="one line for each request: method, path, status, milliseconds and id, never contents",
    )

    def keys(self) -> tuple[str, ...]:
        """All API keys; none: the service is open. WrongSettings when keys are promised and not there."""
        keys = _split(self.api_keys.get_secret_value()) if self.api_keys else []
        if self.api_keys and not keys:
            raise WrongSettings("VAESERVE_API_KEYS holds no key; unset it, or put one in")
        if self.api_keys_file:
            try:
                lines = [line.strip() for line in self.api_keys_file.read_text(encoding="utf-8").splitlines()]
            except (OSError, UnicodeError) as error:
                raise WrongSettings(f"the API keys in {self.api_keys_file} cannot be read: {error}") from None
            found = [line for line in lines if line and not line.startswith("#")]
            if not found:
                raise WrongSettings(f"{self.api_keys_file} holds no API key; put one a line into it")
            keys += found
        return tuple(keys)

    def check(self) -> None:
        """WrongSettings for what would fail later, and in every worker."""
        self.keys()
        if self.otel and find_spec("opentelemetry.exporter") is None:
            raise WrongSettings("--otel needs OpenTelemetry's exporter: pip install 'vaeserve[otel]'")
        if self.otel and not any(name in os.environ for name in COLLECTORS):
            raise WrongSettings(f"--otel needs {COLLECTORS[0]}, the URL of a collector")
        if self.tls_key and not self.tls_cert:
            raise WrongSettings("--tls-key is of no use without --tls-cert")
        if self.tls_cert:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                    self.tls_cert, self.tls_key, password=lambda: ""
                )
            except (OSError, ssl.SSLError) as error:
                files = f"{self.tls_cert}{f' and {self.tls_key}' if self.tls_key else ''}"
                raise WrongSettings(f"{files} cannot be used for TLS: {error}") from None

    def processes(self) -> int:
        """How many workers there are. Python computes on one CPU at a time, and what surrounds a small model
        takes as long as the model: a second process is worth more than a second thread."""
        if self.workers:
            return self.workers
        alone = self.provider == "cuda" or sys.platform == "win32"  # one GPU; no socket to share
        return 1 if alone else min(usable_cpus(), MOST_WORKERS)

    def model_threads(self) -> int:
        """Intra-op threads of each process, with one CPU left for the event loop and the codecs."""
        return self.threads or max(1, usable_cpus() // self.processes() - 1)

    def kept_versions(self) -> int | None:
        """How many versions of a model are kept loaded; None: all."""
        return None if self.versions == "all" else int(self.versions.removeprefix("latest:"))
