"""What the log looks like: lines for people, or JSON for whatever collects them; all of it on stderr."""

import logging
from datetime import UTC, datetime
from time import localtime, strftime
from typing import Any, Literal

import orjson

from service.core.trace import request_id

LINE = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"


class Lines(logging.Formatter):
    """Formats each second once: there are thousands of lines in one."""

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
    """One object a line: time, level, logger, request_id, process and message; a request's own fields."""

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
    """Gives every record of the log the id of its request."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id()
        return True


def log_config(level: str, form: Literal["text", "json"] = "text") -> dict[str, Any]:
    """For logging.config.dictConfig: everything to stderr, uvicorn's and onnxruntime's lines too."""
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
            # What uvicorn says at info level about its own start and stop, our banner says better.
            "uvicorn": {"level": "DEBUG" if level == "debug" else "WARNING"},
            # It warns of every form that is malformed, which is the client's affair and told to it.
            "python_multipart": {"level": "ERROR"},
        },
    }
