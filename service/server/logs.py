"""The format of the log on stderr: lines for people, or JSON for log collectors."""

import logging
from datetime import UTC, datetime
from time import localtime, strftime
from typing import Any, Literal

import orjson

from service.core.trace import request_id

LINE = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"


class Lines(logging.Formatter):
    """Lines for people. Each second is formatted once, because it may have thousands of lines."""

    def __init__(self) -> None:
        super().__init__(LINE)
        self._second = (0, "")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        second, text = self._second
        if second != int(record.created):
            text = strftime("%Y-%m-%d %H:%M:%S", localtime(record.created))
            self._second = (int(record.created), text)
        return f"{text},{int(record.msecs):03d}"


class Json(logging.Formatter):
    """One JSON object on each line.

    Its fields are time, level, logger, request_id, process and message, and those of the request.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": getattr(record, "request_id", None),
            "process": record.process,
            "message": record.getMessage(),
        }
        if isinstance(record.args, dict):
            fields |= {key: value for key, value in record.args.items() if value is not None}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(fields, default=str).decode()


class RequestId(logging.Filter):
    """Adds the request id to every log record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id()
        return True


def log_config(level: str, form: Literal["text", "json"] = "text") -> dict[str, Any]:
    """The configuration for logging.config.dictConfig.

    Everything goes to stderr, including the lines of uvicorn and onnxruntime.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request_id": {"()": RequestId}},
        "formatters": {"text": {"()": Lines}, "json": {"()": Json}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": form, "filters": ["request_id"]}
        },
        "root": {"level": level.upper(), "handlers": ["stderr"]},
        "loggers": {
            # At info level uvicorn logs its start and stop, which the banner already shows.
            "uvicorn": {"level": "DEBUG" if level == "debug" else "WARNING"},
            # It warns about every malformed form. That is the client's error, and the answer says so.
            "python_multipart": {"level": "ERROR"},
        },
    }
